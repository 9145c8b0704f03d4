"""The quotas of an API key, as they are kept with it and shown on the wire."""

from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, field_validator

_LARGEST = 2**53 - 1


class Quotas(BaseModel):
    """Limits of one key. What is null is not limited."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False, frozen=True)

    requests_per_minute: Annotated[int, Field(ge=1, le=1_000_000)] | None = Field(
        default=None, description="Requests of any kind in a sliding minute."
    )
    queued_cost: Annotated[int, Field(ge=1, le=_LARGEST)] | None = Field(
        default=None, description="Pixels × steps × images of all jobs that wait, at once."
    )
    concurrent_jobs: Annotated[int, Field(ge=1, le=1_000_000)] | None = Field(
        default=None, description="Jobs queued or running, at once."
    )
    gpu_seconds_per_day: Annotated[float, Field(gt=0, le=1e9)] | None = Field(
        default=None,
        description="Device time of attempts that ended since 00:00 UTC, and what unfinished jobs "
        "are estimated to take.",
    )
    upload_bytes: Annotated[int, Field(ge=1, le=_LARGEST)] | None = Field(
        default=None, description="Bytes of initial images and batch files kept at once."
    )
    max_pixels: Annotated[int, Field(ge=64 * 64, le=4096 * 4096)] | None = Field(
        default=None, description="Width × height of the largest picture."
    )
    models: Annotated[list[Annotated[str, Field(max_length=64)]], Field(max_length=64)] | None = (
        Field(default=None, description="Names of the models that may be used.")
    )

    @field_validator(
        "requests_per_minute", "queued_cost", "concurrent_jobs", "max_pixels", mode="before"
    )
    @classmethod
    def _whole(cls, value: object) -> object:
        """A JSON number with a zero fractional part is an integer."""
        return int(value) if isinstance(value, float) and value.is_integer() else value

    @property
    def limit_the_queue(self) -> bool:
        """Whether the ledger must be asked before a job is accepted."""
        limits = (self.queued_cost, self.concurrent_jobs, self.gpu_seconds_per_day)
        return any(limit is not None for limit in limits)

    def stored(self) -> dict[str, Any] | None:
        """The value of the key's column: without what is not limited; null for no limit at all."""
        return self.model_dump(exclude_none=True) or None


NO_QUOTAS = Quotas()
