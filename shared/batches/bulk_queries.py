"""SQL of the dispatcher for batches: which have begun, which are complete, whose jobs to feed."""

from typing import Any
from uuid import UUID

from sqlalchemy import Select, func, or_, select, update
from sqlalchemy.sql.dml import ReturningUpdate
from sqlalchemy.sql.elements import ColumnElement

from shared.batches.models import Batch
from shared.batches.queries import NOW
from shared.batches.state import ACTIVE_STATES, BatchState
from shared.jobs.models import Job
from shared.jobs.state import JobState


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


def list_feedable() -> Select[UUID, str, list[str], int]:
    """(batch, key, models, priority) of the batches whose jobs may go to Redis."""
    key = func.coalesce(Batch.api_key_id, func.text(Batch.tenant_id))
    return select(Batch.id, key, Batch.models, Batch.priority).where(
        Batch.finished_at.is_(None), Batch.state.in_(ACTIVE_STATES), Batch.paused.is_(False)
    )


def list_to_feed(batch_id: UUID, model: str, limit: int, after: UUID | None) -> Select[UUID, int]:
    """(job, cost) of the batch's due jobs that come after one of its jobs."""
    return _due_jobs(batch_id, model, limit, Job.id > (after or batch_id))


def list_left_behind(batch_id: UUID, model: str, limit: int, until: UUID) -> Select[UUID, int]:
    """(job, cost) of due jobs that the feeder has passed: retried, released, or lost by Redis."""
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
