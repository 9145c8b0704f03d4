"""What the dispatcher sees to: leases and deadlines that ran out, due jobs, retention."""

from collections.abc import Sequence
from datetime import datetime, timedelta
from uuid import UUID

from sqlalchemy import Delete, Select, delete, func, or_, select, update
from sqlalchemy.sql.elements import ColumnElement
from sqlalchemy.sql.expression import CTE

from shared.core.database import cached_query
from shared.core.ids import encode_id
from shared.jobs.models import ANSWERED_JOB, IdempotencyKey, Job, JobAttempt
from shared.jobs.queries.transitions import (
    SCAN_TIME,
    is_due,
    lock_with_use,
    take,
    take_from_worker,
    terminal,
    with_webhooks,
)
from shared.jobs.state import AttemptOutcome, JobState
from shared.webhooks.models import WebhookEvent


@cached_query()
def expire_leases(limit: int, lease: timedelta) -> Select[Job]:
    """running → queued where the lease has run out, or → failed | canceled where that must be.

    A row that is being changed right now is left alone: its worker lives and is just committing.
    """
    overdue = _first(Job.state == JobState.RUNNING, Job.lease_until < SCAN_TIME, limit=limit)
    return take_from_worker(Job.id == overdue.c.id, lease)


@cached_query()
def expire_queued(limit: int) -> Select[Job]:
    """queued → expired where the start or the finish deadline has passed."""
    late = or_(Job.start_deadline < SCAN_TIME, Job.finish_deadline < SCAN_TIME)
    overdue = _first(Job.state == JobState.QUEUED, late, limit=limit)
    return with_webhooks(
        update(Job)
        .where(Job.id == overdue.c.id, Job.state == JobState.QUEUED)
        .values(**terminal(JobState.EXPIRED))
        .returning(Job)
        .cte("expired")
    )


@cached_query()
def expire_unfinished(limit: int, lease: timedelta) -> Select[Job]:
    """running → expired where the finish deadline has passed; the worker's lease is gone then.

    Charged like a lost attempt, for the worker may be dead; one that lives corrects it
    (`endings.charge_late`).
    """
    overdue = _first(Job.state == JobState.RUNNING, Job.finish_deadline < SCAN_TIME, limit=limit)
    taken = lock_with_use(Job.id == overdue.c.id, lease)
    return with_webhooks(*take(taken, terminal(JobState.EXPIRED), AttemptOutcome.EXPIRED))


@cached_query()
def count_due(queue_class: str) -> Select[str, int]:
    """(model, how many) of the jobs that should be waiting in Redis now."""
    return (
        select(Job.model, func.count())
        .where(Job.queue_class == queue_class, is_due())
        .group_by(Job.model)
    )


def list_due(model: str, queue_class: str, limit: int) -> Select[UUID]:
    """Ids of the jobs that should be waiting in Redis now, oldest first."""
    return (
        select(Job.id)
        .where(Job.model == model, Job.queue_class == queue_class, is_due())
        .order_by(Job.id)
        .limit(limit)
    )


def list_ended(older_than: timedelta, before: UUID, limit: int) -> Select[UUID, str]:
    """(id, session) of jobs that ended longer ago than `older_than`, oldest first.

    `before` is an id made at that time or later: a job that had ended was made earlier still, so
    the ids' own order serves as the index.
    """
    return (
        select(Job.id, Job.session_id)
        .where(Job.id < before, Job.finished_at < SCAN_TIME - older_than)
        .order_by(Job.id)
        .limit(limit)
    )


def delete_ended(job_ids: Sequence[UUID]) -> Delete:
    """Delete jobs with their attempts, image rows, webhooks' events and the answers to their
    submissions; their objects went before."""
    ended = Job.id.in_(job_ids), Job.finished_at.is_not(None)
    chosen = select(Job.id, Job.tenant_id).where(*ended).with_for_update().cte("chosen")
    events = delete(WebhookEvent).where(
        WebhookEvent.tenant_id == chosen.c.tenant_id, WebhookEvent.resource_id == chosen.c.id
    )
    places = [encode_id("job", job_id) for job_id in job_ids]
    answers = delete(IdempotencyKey).where(
        IdempotencyKey.tenant_id == chosen.c.tenant_id, ANSWERED_JOB.in_(places)
    )
    return (
        delete(Job)
        .where(Job.id.in_(select(chosen.c.id)))
        .add_cte(chosen, events.cte("events"), answers.cte("answers"))
    )


def list_uncommitted_attempts(
    after: datetime, ended_for: timedelta, since: UUID, limit: int
) -> Select[UUID, int, str, datetime | None]:
    """(job, number, session, end) of attempts that left no images, in the order of their ends.

    Those that ended after `after` and at least `ended_for` ago, of jobs with ids from `since` on.
    """
    return (
        select(JobAttempt.job_id, JobAttempt.number, Job.session_id, JobAttempt.finished_at)
        .join(Job, Job.id == JobAttempt.job_id)
        .where(
            JobAttempt.job_id >= since,
            JobAttempt.outcome != AttemptOutcome.SUCCEEDED,
            JobAttempt.finished_at > after,
            JobAttempt.finished_at < SCAN_TIME - ended_for,
        )
        .order_by(JobAttempt.finished_at)
        .limit(limit)
    )


def _first(*conditions: ColumnElement[bool], limit: int) -> CTE:
    """The first jobs of a kind that nobody is changing right now, locked."""
    return (
        select(Job.id)
        .where(*conditions)
        .order_by(Job.id)
        .limit(limit)
        .with_for_update(skip_locked=True, key_share=True)
        .cte("overdue")
    )
