"""SQL of how batches begin, change and end, and which of their jobs wait to be enqueued."""

from typing import Any
from uuid import UUID

from sqlalchemy import Select, Update, func, literal, null, or_, select, update
from sqlalchemy.sql.dml import ReturningUpdate
from sqlalchemy.sql.elements import ColumnElement

from shared.batches.models import Batch
from shared.batches.queries import NOW
from shared.batches.state import ACTIVE_STATES, BatchState
from shared.core.database import cached_query
from shared.jobs.models import Job
from shared.jobs.state import JobState
from shared.webhooks.models import EventType


def start_batches() -> ReturningUpdate[Batch]:
    """queued → running for every batch of which a job has started."""
    ended = select(Job.id).where(Job.batch_id == Batch.id, Job.finished_at.is_not(None))
    return (
        update(Batch)
        .where(
            Batch.finished_at.is_(None),
            Batch.state == BatchState.QUEUED,
            or_(_has_running_jobs(), ended.exists()),
        )
        .values(state=BatchState.RUNNING, started_at=NOW, sequence=Batch.sequence + 1)
        .returning(Batch)
    )


@cached_query()
def list_complete() -> Select[UUID, UUID]:
    """(tenant, batch) of the batches that are not ended although all of their jobs are."""
    return select(Batch.tenant_id, Batch.id).where(
        Batch.finished_at.is_(None), Batch.state.in_(ACTIVE_STATES), ~_has_unfinished_jobs()
    )


def end_batch(batch_id: UUID, state: BatchState, summary: dict[str, Any]) -> ReturningUpdate[Batch]:
    """queued | running → a terminal state, if all jobs have ended; with the lock held."""
    return (
        update(Batch)
        .where(Batch.id == batch_id, Batch.finished_at.is_(None), ~_has_unfinished_jobs())
        .values(
            state=state,
            summary=summary,
            sequence=Batch.sequence + 1,
            started_at=func.coalesce(Batch.started_at, NOW),
            finished_at=NOW,
            paused=False,
        )
        .returning(Batch)
    )


@cached_query()
def has_unfinished() -> Select[bool]:
    """Whether any batch has not ended."""
    return select(select(Batch.id).where(Batch.finished_at.is_(None)).exists())


@cached_query()
def list_enqueueable() -> Select[UUID, str, list[str], int]:
    """(batch, key, models, priority) of the batches whose jobs may go to Redis."""
    key = func.coalesce(Batch.api_key_id, func.text(Batch.tenant_id))
    return select(Batch.id, key, Batch.models, Batch.priority).where(
        Batch.finished_at.is_(None), Batch.state.in_(ACTIVE_STATES), Batch.paused.is_(False)
    )


def list_next(batch_id: UUID, model: str, limit: int, after: UUID | None) -> Select[UUID, int]:
    """(job, cost) of the batch's due jobs that come after one of its jobs."""
    return _due_jobs(batch_id, model, limit, Job.id > (after or batch_id))


def list_left_behind(batch_id: UUID, model: str, limit: int, until: UUID) -> Select[UUID, int]:
    """(job, cost) of due jobs that the enqueuer has passed: retried, released, or lost by Redis."""
    return _due_jobs(batch_id, model, limit, Job.id <= until)


def _due_jobs(
    batch_id: UUID, model: str, limit: int, place: ColumnElement[bool]
) -> Select[UUID, int]:
    return (
        select(Job.id, Job.cost)
        .where(
            Job.batch_id == batch_id,
            Job.state == JobState.QUEUED,
            Job.model == model,
            or_(Job.not_before.is_(None), Job.not_before <= NOW),
            place,
        )
        .order_by(Job.id)
        .limit(limit)
    )


def _has_unfinished_jobs() -> ColumnElement[bool]:
    queued = select(Job.id).where(Job.batch_id == Batch.id, Job.state == JobState.QUEUED)
    return or_(queued.exists(), _has_running_jobs())


def _has_running_jobs() -> ColumnElement[bool]:
    # Not correlated: the running jobs are few and have an index of their own.
    running = select(Job.batch_id).where(
        Job.state == JobState.RUNNING, Job.lease_until.is_not(None), Job.batch_id.is_not(None)
    )
    return Batch.id.in_(running)


# --- A client's changes ----------------------------------------------------------------------


def set_paused(tenant_id: UUID, batch_id: UUID, paused: bool) -> ReturningUpdate[Batch]:
    """Pause or resume feeding; no row: the batch has ended or is as wished already."""
    return _change_active(tenant_id, batch_id, Batch.paused.is_not(paused), paused=paused)


def set_priority(tenant_id: UUID, batch_id: UUID, priority: int) -> ReturningUpdate[Batch]:
    """Let the batch go before or after others of its key; no row: it has ended."""
    return _change_active(tenant_id, batch_id, literal(True), priority=priority)


def request_cancel(tenant_id: UUID, batch_id: UUID) -> ReturningUpdate[Batch]:
    """Mark the batch as canceled; its jobs are canceled in the same transaction."""
    return _change_active(
        tenant_id, batch_id, Batch.cancel_requested.is_(False), cancel_requested=True, paused=False
    )


def reopen(tenant_id: UUID, batch_id: UUID, api_key_id: str) -> Update:
    """A key has a job of the batch tried again: what had ended runs again, in that key's turn."""
    return (
        update(Batch)
        .where(Batch.tenant_id == tenant_id, Batch.id == batch_id, Batch.finished_at.is_not(None))
        .values(
            state=BatchState.RUNNING,
            api_key_id=api_key_id,
            finished_at=null(),
            summary=null(),
            cancel_requested=False,
            paused=False,
            sequence=Batch.sequence + 1,
        )
    )


def _change_active(
    tenant_id: UUID, batch_id: UUID, condition: ColumnElement[bool], **values: Any
) -> ReturningUpdate[Batch]:
    return (
        update(Batch)
        .where(
            Batch.tenant_id == tenant_id,
            Batch.id == batch_id,
            Batch.finished_at.is_(None),
            condition,
        )
        .values(**values, sequence=Batch.sequence + 1)
        .returning(Batch)
    )


END_EVENTS = {
    BatchState.SUCCEEDED: EventType.BATCH_COMPLETED,
    BatchState.PARTIAL: EventType.BATCH_COMPLETED,
    BatchState.FAILED: EventType.BATCH_FAILED,
    BatchState.EXPIRED: EventType.BATCH_FAILED,
    BatchState.CANCELED: EventType.BATCH_CANCELED,
}
"""The event of a terminal state; the state itself is in its data."""


def snapshot(batch: Batch) -> dict[str, Any]:
    """The batch as it is now, for an event's data."""
    summary = batch.summary or {}
    return {
        "state": str(batch.state),
        "name": batch.name,
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
