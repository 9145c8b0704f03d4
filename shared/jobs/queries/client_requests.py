"""What a client asks of jobs that exist: cancel, retry, previews; of one or of a whole batch."""

from typing import Any
from uuid import UUID

from sqlalchemy import CTE, ColumnElement, Select, Update, and_, case, null, or_, update

from shared.jobs.models import Job
from shared.jobs.queries.parts import NOW, JobRows, requeued, with_webhooks
from shared.jobs.state import RETRYABLE_STATES, JobState


def cancel(tenant_id: UUID, job_id: UUID) -> JobRows:
    """queued → canceled at once; a running job is asked to stop. No row: already terminal."""
    return with_webhooks(_canceled(Job.tenant_id == tenant_id, Job.id == job_id))


def request_previews(tenant_id: UUID, job_id: UUID) -> Update:
    """A follower wants previews; heard by the attempts that have not begun."""
    return (
        update(Job)
        .where(
            Job.tenant_id == tenant_id,
            Job.id == job_id,
            Job.state == JobState.QUEUED,
            Job.previews.is_(False),
        )
        .values(previews=True)
    )


def retry(tenant_id: UUID, job_id: UUID, api_key_id: str | None) -> JobRows:
    """failed | canceled | expired → queued with fresh counters; seeds and attempts are kept.

    From now on the job is that of the key that asks.
    """
    return (
        update(Job)
        .where(
            Job.tenant_id == tenant_id,
            Job.id == job_id,
            Job.state.in_(RETRYABLE_STATES),
        )
        .values(**_as_new(api_key_id))
        .returning(Job)
    )


def hand_over(old_key_id: str, new_key_id: str) -> Update:
    """The unfinished jobs of a key are another's from now on: it takes the key's place."""
    return (
        update(Job)
        .where(Job.api_key_id == old_key_id, Job.finished_at.is_(None))
        .values(api_key_id=new_key_id)
    )


def cancel_batch(tenant_id: UUID, batch_id: UUID) -> Select[Job]:
    """The same as `cancel` for all jobs of a batch; returns those that run and are to be stopped.

    The caller holds the batch's lock.
    """
    canceled = _canceled(Job.tenant_id == tenant_id, Job.batch_id == batch_id)
    return with_webhooks(canceled).where(canceled.c.state == JobState.RUNNING)


def retry_batch(tenant_id: UUID, batch_id: UUID, api_key_id: str | None) -> Update:
    """failed | expired → queued, as `retry` does, for all jobs of a batch.

    The caller holds the batch's lock.
    """
    return (
        update(Job)
        .where(
            Job.tenant_id == tenant_id,
            Job.batch_id == batch_id,
            Job.state.in_((JobState.FAILED, JobState.EXPIRED)),
        )
        .values(**_as_new(api_key_id))
    )


def _canceled(*which: ColumnElement[bool]) -> CTE:
    """Cancel those of `which` that are queued; ask those that run to stop, once."""
    queued = Job.state == JobState.QUEUED
    return (
        update(Job)
        .where(
            *which,
            or_(queued, and_(Job.state == JobState.RUNNING, Job.cancel_requested.is_(False))),
        )
        .values(
            state=case((queued, JobState.CANCELED), else_=Job.state),
            finished_at=case((queued, NOW), else_=null()),
            cancel_requested=True,
            sequence=Job.sequence + 1,
        )
        .returning(Job)
        .cte("canceled")
    )


def _as_new(api_key_id: str | None) -> dict[str, Any]:
    """Queued once more because a key asks: fresh counters, no deadlines."""
    return {
        **requeued(),
        "api_key_id": api_key_id,
        "failures": 0,
        "losses": 0,
        "cancel_requested": False,
        "finished_at": None,
        "error_code": None,
        "error_message": None,
        "start_deadline": None,
        "finish_deadline": None,
    }
