"""Accept a job: its session, its row, and the answer that a retried submission gets."""

from datetime import timedelta
from typing import Any
from uuid import UUID

from sqlalchemy import (
    BindParameter,
    ColumnElement,
    Delete,
    Interval,
    Select,
    Text,
    Update,
    Uuid,
    bindparam,
    cast,
    delete,
    func,
    insert,
    literal,
    select,
    update,
)
from sqlalchemy.dialects.postgresql import Insert
from sqlalchemy.dialects.postgresql import insert as pg_insert
from sqlalchemy.orm import aliased
from sqlalchemy.sql.dml import ReturningInsert

from shared.core.database import built_once
from shared.images.models import Session
from shared.jobs.models import IdempotencyKey, Job
from shared.jobs.queries.parts import NOW, SCAN_TIME, JobRows, ahead_of
from shared.jobs.state import JobState


def ensure_session(
    tenant_id: UUID | BindParameter[UUID], session_id: str | BindParameter[str]
) -> Insert:
    """Make the session on its first use, and let nobody delete it until the transaction ends.

    A row that is there already is not locked by this, and a job put into it would break over its
    deletion; so whoever deletes a session waits for `session_lock`, as this does.
    """
    tenant, name = _typed(tenant_id, Uuid), _typed(session_id, Text)
    held = func.pg_advisory_xact_lock_shared(session_lock(tenant, name)).table_valued("held")
    row = select(tenant, name).select_from(held)
    statement = pg_insert(Session).from_select(["tenant_id", "id"], row)
    return statement.on_conflict_do_nothing()


def session_lock(tenant: ColumnElement[UUID], name: ColumnElement[str]) -> ColumnElement[int]:
    """The number of a session's advisory lock: shared to add to it, exclusive to delete it."""
    return func.hashtextextended(cast(tenant, Text) + name, 0)


def _typed(value: Any, kind: Any) -> ColumnElement[Any]:
    return cast(value if isinstance(value, BindParameter) else literal(value, kind), kind)


def insert_job(job: dict[str, Any]) -> JobRows:
    """Accept a job: from here on it is not lost."""
    return insert(Job).values(**job, state=JobState.QUEUED).returning(Job)


def accept_job(job: dict[str, Any]) -> tuple[Select[Job, int], dict[str, Any]]:
    """Accept a job, in one round trip: its session, its row, and how many jobs go before it.

    Gives a statement and its parameters. `start_within` and `finish_within` are intervals that
    become the deadlines.
    """
    return _accept_job(frozenset(job)), {f"job_{name}": value for name, value in job.items()}


@built_once()
def _accept_job(names: frozenset[str]) -> Select[Job, int]:
    """Built once for each set of columns: building it takes longer than running it."""
    columns: dict[str, Any] = {
        name: bindparam(f"job_{name}", type_=getattr(Job, name).type)
        for name in names
        if name not in _DEADLINES
    }
    deadlines = {
        column: NOW + bindparam(f"job_{name}", type_=Interval)
        for name, column in _DEADLINES.items()
        if name in names
    }
    session = ensure_session(columns["tenant_id"], columns["session_id"]).cte("session")
    row = insert(Job).values(**columns, **deadlines, state=JobState.QUEUED)
    accepted = row.returning(Job).cte("accepted")
    ahead = ahead_of(columns["id"], columns["model"], columns["lane"]).scalar_subquery()
    return select(aliased(Job, accepted), ahead).add_cte(session)


_DEADLINES = {"start_within": "start_deadline", "finish_within": "finish_deadline"}


def reserve_idempotency_key(
    tenant_id: UUID, key: str, request_sha256: bytes
) -> ReturningInsert[str]:
    """Take the key, or return no row when it is taken.

    Waits for a concurrent transaction that holds the same key, so that of two simultaneous
    retries one submits and the other replays.
    """
    return (
        pg_insert(IdempotencyKey)
        .values(tenant_id=tenant_id, key=key, request_sha256=request_sha256, status=0, response={})
        .on_conflict_do_nothing()
        .returning(IdempotencyKey.key)
    )


def store_idempotent_answer(
    tenant_id: UUID, key: str, status: int, response: dict[str, Any]
) -> Update:
    """Keep the answer that retries will get, in the submission's own transaction."""
    return (
        update(IdempotencyKey)
        .where(IdempotencyKey.tenant_id == tenant_id, IdempotencyKey.key == key)
        .values(status=status, response=response)
    )


def find_idempotent_answer(tenant_id: UUID, key: str) -> Select[IdempotencyKey]:
    """The remembered answer of a key."""
    return select(IdempotencyKey).where(
        IdempotencyKey.tenant_id == tenant_id, IdempotencyKey.key == key
    )


def forget_idempotency_keys(older_than: timedelta) -> Delete:
    """Retention: a key protects a retry for a day or so, not for ever."""
    return delete(IdempotencyKey).where(IdempotencyKey.created_at < SCAN_TIME - older_than)
