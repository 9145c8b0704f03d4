"""Queries of the operator: drains of workers, and what waits over all tenants."""

from collections.abc import Collection
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import Delete, Select, Update, and_, delete, func, or_, select, update
from sqlalchemy.dialects.postgresql import insert as pg_insert
from sqlalchemy.sql.dml import ReturningDelete, ReturningInsert, ReturningUpdate

from shared.admin.models import WorkerDrain
from shared.batches.models import Batch
from shared.core.database import cached_query
from shared.jobs.models import Job
from shared.jobs.state import JobState
from shared.webhooks.delivery_queries import is_held
from shared.webhooks.models import DeliveryState, WebhookDelivery

_NOW = func.clock_timestamp()
_SCAN_TIME = func.statement_timestamp()


def order_drain(worker: str, key_id: str | None) -> ReturningInsert[WorkerDrain]:
    """Request draining; idempotent. Returns the row."""
    return (
        pg_insert(WorkerDrain)
        .values(worker=worker, requested_by=key_id)
        .on_conflict_do_update(index_elements=[WorkerDrain.worker], set_={"worker": worker})
        .returning(WorkerDrain)
    )


def lift_drain(worker: str) -> ReturningDelete[str]:
    """Resume the worker. No row: it was not draining."""
    return delete(WorkerDrain).where(WorkerDrain.worker == worker).returning(WorkerDrain.worker)


def list_drains(workers: Collection[str] | None = None) -> Select[WorkerDrain]:
    """All drains, or those of these workers."""
    statement = select(WorkerDrain).order_by(WorkerDrain.worker)
    return statement if workers is None else statement.where(WorkerDrain.worker.in_(workers))


def read_drain(worker: str) -> ReturningUpdate[WorkerDrain]:
    """The worker's own drain, and the note that it has read it. No row: it is to work."""
    return (
        update(WorkerDrain)
        .where(WorkerDrain.worker == worker)
        .values(seen_at=_NOW)
        .returning(WorkerDrain)
    )


def note_drained(worker: str, requested_at: datetime) -> Update:
    """Nothing is in flight at this worker any more; of this order, not of a later one."""
    return (
        update(WorkerDrain)
        .where(
            WorkerDrain.worker == worker,
            WorkerDrain.requested_at == requested_at,
            WorkerDrain.drained_at.is_(None),
        )
        .values(drained_at=_NOW)
    )


def purge_drains(unread_for: timedelta) -> Delete:
    """Drop the orders to workers that have not been there for that long: nobody has the name."""
    limit = _NOW - unread_for
    return delete(WorkerDrain).where(WorkerDrain.seen_at < limit, WorkerDrain.requested_at < limit)


@cached_query()
def count_waiting() -> Select[str, str, int, Any]:
    """(model, queue_class, jobs that may run, seconds that the oldest has waited)."""
    since = func.coalesce(Job.not_before, Job.created_at)
    paused = select(Batch.id).where(Batch.paused, Batch.finished_at.is_(None))
    may_run = and_(
        Job.state == JobState.QUEUED,
        or_(Job.not_before.is_(None), Job.not_before <= _SCAN_TIME),
        # The few paused batches are hashed once.
        or_(Job.batch_id.is_(None), ~Job.batch_id.in_(paused)),
    )
    age = func.greatest(0, func.extract("epoch", _SCAN_TIME - func.min(since)))
    return (
        select(Job.model, Job.queue_class, func.count(), age)
        .where(may_run)
        .group_by(Job.model, Job.queue_class)
    )


@cached_query()
def count_running() -> Select[str, str, int]:
    """(model, queue_class, running jobs)."""
    return (
        select(Job.model, Job.queue_class, func.count())
        .where(Job.state == JobState.RUNNING)
        .group_by(Job.model, Job.queue_class)
    )


@cached_query()
def count_deliveries() -> Select[int, Any]:
    """(webhook deliveries that could go out now, seconds since the oldest was due)."""
    age = func.extract("epoch", _SCAN_TIME - func.min(WebhookDelivery.due_at))
    return select(func.count(), func.greatest(0, func.coalesce(age, 0))).where(
        WebhookDelivery.state == DeliveryState.PENDING,
        WebhookDelivery.due_at <= _SCAN_TIME,
        or_(WebhookDelivery.lease_until.is_(None), WebhookDelivery.lease_until < _SCAN_TIME),
        ~is_held(WebhookDelivery),
    )
