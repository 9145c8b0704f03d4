"""What a client asks of jobs that exist: cancel, retry, previews; of one or of a whole batch."""

from collections.abc import Mapping
from typing import Any
from uuid import UUID

from sqlalchemy import (
    CTE,
    BigInteger,
    ColumnElement,
    Select,
    Text,
    Update,
    Uuid,
    and_,
    case,
    cast,
    column,
    func,
    literal_column,
    null,
    or_,
    select,
    update,
)
from sqlalchemy.dialects.postgresql import JSONB

from shared.core.errors import RefusedByFilter
from shared.jobs.models import Job
from shared.jobs.queries.transitions import NOW, JobRows, requeued, terminal, with_webhooks
from shared.jobs.state import RETRYABLE_STATES, JobState
from shared.webhooks import outbox
from shared.webhooks.models import ENDS_OF_JOBS

WAS_ACCEPTED = Job.error_code.is_distinct_from(RefusedByFilter.code)
"""What a filter has refused is only checked again when it is submitted again."""


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
            WAS_ACCEPTED,
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


def cancel_tenant(tenant_id: UUID) -> Select[Job]:
    """The same for all jobs of a tenant that is to be deleted."""
    canceled = _canceled(Job.tenant_id == tenant_id)
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
            WAS_ACCEPTED,
        )
        .values(**_as_new(api_key_id))
    )


def refuse_lines(
    batch_id: UUID, refused: Mapping[UUID, str]
) -> Select[int, int, int, list[UUID] | None]:
    """queued → failed for lines of a batch that is being accepted: a filter refuses their prompts.

    `refused` has a message for each job. One row: how many they are, their images, their cost, and
    the ids of all deliveries, null for none. There may be 50,000.
    """
    of_job, message = _by_job(refused)
    change = (
        update(Job)
        .where(Job.batch_id == batch_id, Job.id == of_job, Job.state == JobState.QUEUED)
        .values(
            **terminal(JobState.FAILED),
            error_code=RefusedByFilter.code,
            error_message=message.op("#>>")(literal_column("'{}'")),
        )
    )
    changed = change.returning(Job).cte("refused")
    recorded = outbox.record_jobs(changed, ENDS_OF_JOBS)
    images, cost = (
        cast(func.coalesce(func.sum(each), 0), BigInteger)
        for each in (func.cardinality(changed.c.seeds), changed.c.cost)
    )
    return (
        select(func.count(), images, cost, recorded.of_all)
        .select_from(changed)
        .add_cte(changed, *recorded.ctes)
    )


def mark_lines(batch_id: UUID, marked: Mapping[UUID, list[dict[str, str]]]) -> Update:
    """Warn of lines of a batch that is being accepted; `marked` has the warnings of each job."""
    of_job, warnings = _by_job(marked)
    chosen = Job.batch_id == batch_id, Job.id == of_job
    return update(Job).where(*chosen).values(warnings=warnings)


def _by_job(values: Mapping[UUID, Any]) -> tuple[ColumnElement[UUID], ColumnElement[Any]]:
    """(job, its value as jsonb), to be joined."""
    given = cast({str(job_id): value for job_id, value in values.items()}, JSONB)
    rows = func.jsonb_each(given).table_valued(column("key", Text), column("value", JSONB))
    return cast(rows.c.key, Uuid), rows.c.value


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
        "filtered": [],
        "start_deadline": None,
        "finish_deadline": None,
    }
