"""SQL of drains: an operator orders one, the worker reads it and notes that its hands are empty."""

from collections.abc import Collection
from datetime import datetime, timedelta

from sqlalchemy import Delete, Select, Update, delete, func, select, update
from sqlalchemy.dialects.postgresql import insert as pg_insert
from sqlalchemy.sql.dml import ReturningDelete, ReturningInsert, ReturningUpdate

from shared.fleet.models import WorkerDrain

_NOW = func.clock_timestamp()


def order_drain(worker: str, key_id: str | None) -> ReturningInsert[WorkerDrain]:
    """Tell the worker to rest; where it was told already, nothing changes but the row comes."""
    return (
        pg_insert(WorkerDrain)
        .values(worker=worker, requested_by=key_id)
        .on_conflict_do_update(index_elements=[WorkerDrain.worker], set_={"worker": worker})
        .returning(WorkerDrain)
    )


def lift_drain(worker: str) -> ReturningDelete[str]:
    """Let the worker go on. No row: it was not told to rest."""
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
    """Nothing is in this worker's hands any more; of this order, not of a later one."""
    return (
        update(WorkerDrain)
        .where(
            WorkerDrain.worker == worker,
            WorkerDrain.requested_at == requested_at,
            WorkerDrain.drained_at.is_(None),
        )
        .values(drained_at=_NOW)
    )


def forget_drains(unread_for: timedelta) -> Delete:
    """Drop the orders to workers that have not been there for so long: nobody has that name now."""
    limit = _NOW - unread_for
    return delete(WorkerDrain).where(WorkerDrain.seen_at < limit, WorkerDrain.requested_at < limit)
