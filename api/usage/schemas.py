"""What clients get for their usage."""

from pydantic import Field

from api.wire import AnswerModel, UtcTime


class Allowance(AnswerModel):
    """One limit of the key. `limit` and `left` are null where there is none."""

    limit: float | None
    """The most that is allowed, in the unit of this quota. Null: no limit."""
    used: float | None = Field(description="Null when it cannot be said just now.")
    reserved: float | None
    """What unfinished jobs are estimated to take. Null where nothing is held back."""
    left: float | None
    """`limit` minus `used` and `reserved`, never below 0. Null without a limit."""
    resets_at: UtcTime | None = Field(description="Null where it is freed as jobs end.")


class Usage(AnswerModel):
    """What the key may use and has used."""

    key_id: str
    """The public part of the key that asked."""
    requests_per_minute: Allowance
    """Requests of any kind within a sliding minute."""
    queued_cost: Allowance
    """Width × height × steps × images of the key's queued jobs."""
    concurrent_jobs: Allowance
    """The key's jobs that are queued or running."""
    gpu_seconds_per_day: Allowance
    """Device time of the attempts that ended since 00:00 UTC, in seconds."""
    upload_bytes: Allowance
    """Bytes of the initial images and batch files that are kept for the key."""
    max_pixels: int | None = Field(description="Width × height of the largest picture.")
    models: list[str] | None = Field(description="Null: every model.")
