"""The outbox: write an event and its deliveries in the very statement that makes it happen.

A transition of jobs (or batches) is a CTE; `record` adds three more to it, so that state, event
and deliveries are one statement, and no code path can make the one without the others. Where
nobody is to be told, that costs one look into an index.

The SQL is text, built once: these CTEs are a part of every transition, and to put them together
from SQLAlchemy's parts each time took longer than to run them.
"""

from collections.abc import Mapping
from functools import cache
from typing import Any, NamedTuple
from uuid import UUID

from sqlalchemy import (
    CTE,
    BigInteger,
    ColumnElement,
    Select,
    Text,
    Uuid,
    cast,
    column,
    literal,
    literal_column,
    null,
    select,
    table,
    text,
    type_coerce,
)
from sqlalchemy.dialects.postgresql import ARRAY, JSONB

from shared.jobs.state import JobState
from shared.webhooks.delivery_queries import AT_ONCE, AT_ONCE_WHILE_FAILING, receiver_of
from shared.webhooks.models import EventType

SUBSCRIBERS = "endpoint.enabled AND {kind} = ANY (endpoint.events)"
"""Receivers: the endpoints that are enabled and have asked for this kind of event."""
ITSELF = "endpoint.id = {subject}.id"
"""Receivers: the endpoint that the event is about, enabled or not."""
OTHERS = "endpoint.enabled AND endpoint.id <> {subject}.id"
"""Receivers: all other endpoints of its tenant that are enabled."""

# A UUIDv7 (RFC 9562); PostgreSQL has uuidv7() only from version 18 on. The milliseconds go over
# the first 48 bits of a random UUIDv4, and two bits turn its version from 4 to 7.
_NEW_ID = """encode(set_bit(set_bit(overlay(uuid_send(gen_random_uuid()) PLACING
 substring(int8send(floor(extract(epoch FROM clock_timestamp()) * 1000)::bigint) FROM 3)
 FROM 1 FOR 6), 52, 1), 53, 1), 'hex')::uuid"""

# One tenant's slow receiver must not take up another's share of the same host.
_RECEIVER = """
 SELECT {subject}.id AS resource_id, endpoint.id AS endpoint_id, NULL::text AS url,
  endpoint.id::text AS destination
 FROM {subject} JOIN webhook_endpoints endpoint ON endpoint.tenant_id = {subject}.tenant_id
 WHERE {receivers}
 UNION ALL
 SELECT {subject}.id, NULL::uuid, {subject}.webhook ->> 'url', {subject}.tenant_id || ' ' ||
  coalesce({subject}.webhook ->> 'origin', {subject}.webhook ->> 'url')
 FROM {subject} WHERE {subject}.webhook -> 'events' ? {kind}"""

_EVENT = """
 INSERT INTO webhook_events (id, tenant_id, type, resource_id, sequence, data)
 SELECT {new_id}, {subject}.tenant_id, {kind}, {subject}.id, {subject}.sequence, {data}
 FROM {subject} WHERE {subject}.id IN (SELECT resource_id FROM receiver)
 RETURNING id, tenant_id, type, resource_id"""

_DELIVERY = """
 INSERT INTO webhook_deliveries
  (id, tenant_id, event_id, event_type, resource_id, endpoint_id, url, destination)
 SELECT {new_id}, event.tenant_id, event.id, event.type, event.resource_id,
  receiver.endpoint_id, receiver.url, receiver.destination
 FROM event JOIN receiver ON receiver.resource_id = event.resource_id
 RETURNING id, tenant_id, resource_id, endpoint_id, url, destination"""

# Whether workers are to be told of a delivery: unless its receiver holds it back, or its
# destination has no room now and others wait for it too. Who is sending there comes to it by
# himself; and should all have sent what waited, and gone, before this commits, the dispatcher finds
# it, as where a hold has ended or Redis has lost a hint. The room is that of
# `delivery_queries._limit`.
_IS_TOLD = """
 NOT EXISTS (SELECT FROM webhook_holds hold
  WHERE hold.receiver = {receiver} AND hold.held_until > clock_timestamp())
 AND (SELECT count(*) < {few} OR count(*) FILTER (WHERE lease_until > clock_timestamp()) <
   CASE WHEN EXISTS (SELECT FROM webhook_endpoints endpoint
    WHERE endpoint.id = delivery.endpoint_id AND endpoint.failing_since IS NOT NULL)
   THEN {failing} ELSE {room} END
  FROM (SELECT lease_until FROM webhook_deliveries earlier
   WHERE earlier.destination = delivery.destination AND earlier.state = 'pending'
    AND earlier.due_at <= statement_timestamp()
   ORDER BY earlier.due_at LIMIT {few}) earliest)"""

_DELIVERED = table("delivery", *(column(name) for name in ("endpoint_id", "tenant_id", "url")))
_ITS_RECEIVER = str(receiver_of(_DELIVERED.c).compile(compile_kwargs={"literal_binds": True}))
"""SQL for whom a hold of a row of the CTE `delivery` would be for."""

# The job as it is then; `shared.webhooks.message` makes the wire's form of it.
_JOB_SNAPSHOT = (
    *("kind", "state", "model", "session_id", "batch_id", "custom_id", "seeds", "width", "height"),
    *("output_format", "metadata", "error_code", "error_message", "gpu_seconds", "filtered"),
    *("created_at", "started_at", "finished_at"),
)


class Recorded(NamedTuple):
    """What to add to a statement, behind the CTE of its subjects."""

    ctes: tuple[CTE, ...]
    deliveries: ColumnElement[Any]
    """The ids of the deliveries of a subject to tell workers of; null for none."""
    of_all: ColumnElement[Any]
    """The same for all subjects."""


def record_jobs(changed: CTE, events: Mapping[JobState, EventType]) -> Recorded:
    """The events of jobs that a CTE has changed, by the state that each now has.

    Workers are told of those deliveries alone whose destinations have room, or hardly any waiting,
    and which no receiver holds back.
    """
    return _record_jobs(str(changed.name), tuple(events.items()))


@cache
def _record_jobs(subject: str, events: tuple[tuple[JobState, EventType], ...]) -> Recorded:
    cases = " ".join(f"WHEN '{state}' THEN '{event}'" for state, event in events)
    snapshot = ", ".join(f"'{name}', {subject}.{name}" for name in _JOB_SNAPSHOT)
    kind, data = f"CASE {subject}.state {cases} END", f"jsonb_build_object({snapshot})"
    told = _IS_TOLD.format(
        few=2 * AT_ONCE, room=AT_ONCE, failing=AT_ONCE_WHILE_FAILING, receiver=_ITS_RECEIVER
    )
    return record(subject, kind, data, told=told)


@cache
def record(
    subject: str, kind: str, data: str, receivers: str = SUBSCRIBERS, *, told: str = "true"
) -> Recorded:
    """An event for each row of the CTE `subject` that somebody wants to hear of; its deliveries.

    The CTE has the columns `id`, `tenant_id`, `sequence` and `webhook`: jsonb, null or
    ``{"url", "events", "origin"}`` with the URL's scheme, host and port for the origin. `kind` is
    SQL for the event's type, null where there is none, and `data` for its jsonb. `receivers`
    chooses among the tenant's endpoints, `told` among the deliveries those to tell workers of.
    """
    parts = {"subject": subject, "kind": kind, "data": data, "new_id": _NEW_ID}
    parts["receivers"] = receivers.format(**parts)

    def part(name: str, sql: str) -> CTE:
        # Colons would be parameters to text().
        escaped = sql.format(**parts).replace(":", r"\:")
        return text(escaped).columns(column("id", Uuid)).cte(name)

    ctes = (part("receiver", _RECEIVER), part("event", _EVENT), part("delivery", _DELIVERY))
    every = "SELECT array_agg(id) FROM delivery"
    ids = f"({every} WHERE resource_id = {subject}.id AND {told})"
    all_ids = f"({every} WHERE {told})"
    return Recorded(
        ctes, *(type_coerce(literal_column(sql), ARRAY(Uuid)) for sql in (ids, all_ids))
    )


def emit(
    tenant_id: UUID,
    kind: EventType,
    resource_id: UUID,
    data: Mapping[str, Any],
    *,
    sequence: int = 0,
    webhook: Mapping[str, Any] | None = None,
    receivers: str = SUBSCRIBERS,
) -> Select[list[UUID] | None]:
    """Write one event of one resource; answers the ids of its deliveries, null for none.

    For what changes in more than one statement, as batches do: run this in the transaction of the
    change, and publish the deliveries after its commit. `webhook` is the resource's own, as in its
    row; `data` is what the payload says of it in addition to `id` and `links`.
    """
    subject = select(
        literal(resource_id, Uuid).label("id"),
        literal(tenant_id, Uuid).label("tenant_id"),
        literal(sequence, BigInteger).label("sequence"),
        cast(dict(webhook) if webhook else null(), JSONB).label("webhook"),
        literal(str(kind), Text).label("kind"),
        cast(dict(data), JSONB).label("data"),
    ).cte("subject")
    recorded = record("subject", "subject.kind", "subject.data", receivers)
    return select(recorded.deliveries).select_from(subject).add_cte(subject, *recorded.ctes)
