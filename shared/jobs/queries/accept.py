"""Accept a job: its session, its row, and the answer that a retried submission gets."""

from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from functools import cache
from typing import Any, NamedTuple
from uuid import UUID

from pydantic_core import to_json
from sqlalchemy import Delete, Select, Text, Uuid, column, delete, select
from sqlalchemy.dialects.postgresql import insert as pg_insert
from sqlalchemy.sql.dml import ReturningInsert

from shared.core.database import DIALECT
from shared.images.queries import session_lock
from shared.jobs.models import IdempotencyKey, Job
from shared.jobs.queries.transitions import NOW, SCAN_TIME


def accept_jobs(jobs: Sequence[Mapping[str, Any]]) -> tuple[str, dict[str, Any]]:
    """Accept jobs of one tenant in one round trip: their sessions, their rows, and how many jobs go
    before each. From there on they are not lost.

    `start_within` and `finish_within` are intervals that become the deadlines. The sessions' locks
    are held until the transaction ends: a job would break over the deletion of its session.

    A job may also have an `idempotency_key` with its `request_sha256` in hexadecimal: the key is
    taken with it, and where it is taken already the job is left out, to be answered by itself.

    For psycopg itself: SQL and its parameters. A row has the fields of `NewJob`.
    """
    names = frozenset(name for job in jobs for name in job).difference(_OF_IDEMPOTENCY)
    return _accept_jobs(names), {"jobs": to_json(jobs).decode()}


class NewJob(NamedTuple):
    """What the database adds to an accepted job."""

    id: UUID
    created_at: datetime
    start_deadline: datetime | None
    finish_deadline: datetime | None
    ahead: int
    """Jobs that go before it."""


# Keys and sessions are locked in their order, so that groups cannot wait in a circle. Jobs of a
# group stand in the queue one behind the other, so that the queue is looked at once.
_ACCEPT_JOBS = """
WITH given AS MATERIALIZED (
    SELECT * FROM jsonb_to_recordset(%(jobs)s::text::jsonb)
        AS r(idempotency_key text, request_sha256 text, {types})
), taken AS (
    INSERT INTO idempotency_keys (tenant_id, key, request_sha256, status, response)
    SELECT tenant_id, idempotency_key, decode(request_sha256, 'hex'), 0, '{{}}' FROM given
    WHERE idempotency_key IS NOT NULL ORDER BY idempotency_key
    ON CONFLICT DO NOTHING RETURNING key
), fresh AS MATERIALIZED (
    SELECT * FROM given
    WHERE idempotency_key IS NULL OR idempotency_key IN (SELECT key FROM taken)
), named AS (
    SELECT DISTINCT tenant_id, session_id FROM fresh ORDER BY session_id
), session AS (
    INSERT INTO sessions (tenant_id, id)
    SELECT tenant_id, session_id FROM named, pg_advisory_xact_lock_shared({lock})
    ON CONFLICT DO NOTHING
), accepted AS (
    INSERT INTO jobs ({columns}, state) SELECT {values}, 'queued' FROM fresh ORDER BY id
    RETURNING id, created_at, start_deadline, finish_deadline, model, queue_class
), queues AS (
    SELECT DISTINCT ON (model, queue_class) model, queue_class, id AS first FROM accepted
    ORDER BY model, queue_class, id
), ahead AS MATERIALIZED (
    SELECT model, queue_class, darkroom_jobs_ahead(first, model, queue_class) AS jobs FROM queues
)
SELECT id, created_at, start_deadline, finish_deadline,
    jobs + row_number() OVER (PARTITION BY model, queue_class ORDER BY id) - 1
FROM accepted JOIN ahead USING (model, queue_class)
"""

_OF_IDEMPOTENCY = ("idempotency_key", "request_sha256")


@cache
def _accept_jobs(names: frozenset[str]) -> str:
    columns = {name: Job.__mapper__.columns[_DEADLINES.get(name, name)] for name in sorted(names)}
    types = {name: str(column.type.compile(DIALECT)) for name, column in columns.items()}
    types |= dict.fromkeys(names & _DEADLINES.keys(), "interval")
    given = (f"clock_timestamp() + {name}" if name in _DEADLINES else name for name in columns)
    named = column("tenant_id", Uuid), column("session_id", Text)
    return _ACCEPT_JOBS.format(
        types=", ".join(f"{name} {kind}" for name, kind in types.items()),
        lock=session_lock(*named).compile(dialect=DIALECT, compile_kwargs={"literal_binds": True}),
        columns=", ".join(column.name for column in columns.values()),
        values=", ".join(given),
    )


_DEADLINES = {"start_within": "start_deadline", "finish_within": "finish_deadline"}


def reserve_idempotency_key(
    tenant_id: UUID, key: str, request_sha256: bytes, joins: timedelta | None = None
) -> ReturningInsert[str]:
    """Take the key, or return no row when it is taken, and not longer ago than `joins`.

    Waits for a concurrent transaction that holds the same key, so that of two simultaneous
    retries one submits and the other replays.
    """
    new = {"request_sha256": request_sha256, "status": 0, "response": {}}
    insertion = pg_insert(IdempotencyKey).values(tenant_id=tenant_id, key=key, **new)
    if joins is None:
        insertion = insertion.on_conflict_do_nothing()
    else:
        insertion = insertion.on_conflict_do_update(
            index_elements=[IdempotencyKey.tenant_id, IdempotencyKey.key],
            set_={**new, "created_at": NOW},
            where=IdempotencyKey.created_at <= NOW - joins if joins else None,
        )
    return insertion.returning(IdempotencyKey.key)


def store_idempotent_answers(
    tenant_id: UUID, answers: Mapping[str, Mapping[str, str]]
) -> tuple[str, dict[str, Any]]:
    """Keep the answers that retries will get, in their submissions' own transaction. For psycopg
    itself, too."""
    named = to_json([{"key": key, "response": answer} for key, answer in answers.items()])
    return _STORE_ANSWERS, {"tenant": tenant_id, "answers": named.decode()}


_STORE_ANSWERS = """
UPDATE idempotency_keys AS kept SET status = 202, response = given.response
FROM jsonb_to_recordset(%(answers)s::text::jsonb) AS given(key text, response jsonb)
WHERE kept.tenant_id = %(tenant)s AND kept.key = given.key
"""


def find_idempotent_answer(
    tenant_id: UUID, key: str, joins: timedelta | None
) -> Select[IdempotencyKey]:
    """The remembered answer of a key, if it is not older than `joins`."""
    answer = select(IdempotencyKey).where(
        IdempotencyKey.tenant_id == tenant_id, IdempotencyKey.key == key
    )
    return answer if joins is None else answer.where(IdempotencyKey.created_at > NOW - joins)


def purge_idempotency_keys(older_than: timedelta) -> Delete:
    """Retention: a key protects a retry for a day or so, not for ever."""
    return delete(IdempotencyKey).where(IdempotencyKey.created_at < SCAN_TIME - older_than)
