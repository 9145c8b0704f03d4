"""What clients get for their usage."""

from pydantic import Field

from api.wire import AnswerModel, UtcTime


class Allowance(AnswerModel):
    """One limit of the key. `limit` and `left` are null where there is none."""

    limit: float | None
    used: float | None = Field(description="Null when it cannot be said just now.")
    left: float | None
    resets_at: UtcTime | None = Field(description="Null where it is freed as jobs end.")


class Usage(AnswerModel):
    """What the key may use and has used."""

    key_id: str
    requests_per_minute: Allowance
    queued_cost: Allowance
    concurrent_jobs: Allowance
    gpu_seconds_per_day: Allowance
    max_pixels: int | None = Field(description="Width × height of the largest picture.")
    models: list[str] | None = Field(description="Null: every model.")
