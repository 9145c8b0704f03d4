"""Queues, as operators see them."""

from dataclasses import dataclass

from darkroom.decoding import Document


@dataclass(frozen=True, kw_only=True)
class QueueDepth(Document):
    """One model's jobs of one lane, of all tenants."""

    model: str
    lane: str
    """`interactive`, or `bulk` for batches; workers take interactive jobs first."""
    queued: int
    """Jobs that wait and may run."""
    running: int
    """Jobs in workers' hands."""
    oldest_age_seconds: float | None = None
    """How long the oldest of the queued jobs has waited; None: none waits."""
