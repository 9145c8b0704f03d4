"""What operators get for queues."""

from pydantic import Field

from api.wire import AnswerModel


class QueueDepth(AnswerModel):
    """One model's jobs of one lane, of all tenants."""

    model: str
    """Name of the model."""
    lane: str = Field(description="`interactive`, or `bulk`: of batches, taken second.")
    queued: int = Field(
        description="Jobs that wait and may run: not those of paused batches or before their next "
        "attempt."
    )
    running: int = Field(description="Jobs in workers' hands.")
    oldest_age_seconds: float | None = Field(
        description="How long the oldest of the queued jobs has waited, since its submission or "
        "its last failure. Null: none waits."
    )
