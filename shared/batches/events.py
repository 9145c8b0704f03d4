"""What webhooks tell of batches."""

from typing import Any

from shared.batches.models import Batch
from shared.batches.state import BatchState
from shared.webhooks.events import EventType

_END_EVENTS = {
    BatchState.SUCCEEDED: EventType.BATCH_COMPLETED,
    BatchState.PARTIAL: EventType.BATCH_COMPLETED,
    BatchState.FAILED: EventType.BATCH_FAILED,
    BatchState.EXPIRED: EventType.BATCH_FAILED,
    BatchState.CANCELED: EventType.BATCH_CANCELED,
}


def end_event(state: BatchState) -> EventType:
    """The event of a terminal state; the state itself is in its data."""
    return _END_EVENTS[state]


def snapshot(batch: Batch) -> dict[str, Any]:
    """The batch as it is now, for an event's data."""
    summary = batch.summary or {}
    return {
        "state": str(batch.state),
        "session_id": batch.session_id,
        "lines": batch.lines,
        "invalid_lines": batch.invalid_lines,
        "jobs": batch.jobs,
        "images": batch.images,
        "counts": {state: counted["jobs"] for state, counted in summary.items()},
        "metadata": batch.batch_metadata,
        "created_at": batch.created_at.isoformat(),
        "started_at": batch.started_at and batch.started_at.isoformat(),
        "finished_at": batch.finished_at and batch.finished_at.isoformat(),
    }
