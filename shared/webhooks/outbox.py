"""The outbox: write an event and its deliveries in the very statement that makes it happen.

A transition of jobs (or batches) is a CTE; `record` adds two more to it, so that state, event and
deliveries are one statement, and no code path can make the one without the others. A tenant that
nobody is to be told about costs one look into an index.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple
from uuid import UUID

from sqlalchemy import (
    CTE,
    BigInteger,
    ColumnElement,
    Select,
    Text,
    Uuid,
    and_,
    any_,
    case,
    cast,
    func,
    insert,
    literal,
    literal_column,
    null,
    select,
    union_all,
)
from sqlalchemy.dialects.postgresql import JSONB

from shared.jobs.state import JobState
from shared.webhooks.events import EventType
from shared.webhooks.models import WebhookDelivery, WebhookEndpoint, WebhookEvent


class Recorded(NamedTuple):
    """What `record` adds to a statement."""

    ctes: tuple[CTE, ...]
    deliveries: CTE
    """Columns `id` and `resource_id` of the deliveries just written."""


def record_jobs(changed: CTE, events: Mapping[JobState, EventType]) -> Recorded:
    """The events of jobs that a CTE has just changed, by the state that each now has."""
    kind = case({str(state): str(event) for state, event in events.items()}, value=changed.c.state)
    return record(changed, kind, _job_snapshot(changed))


def record(
    subjects: CTE,
    kind: ColumnElement[Any],
    data: ColumnElement[Any],
    receivers: ColumnElement[bool] | None = None,
) -> Recorded:
    """An event for each row of `subjects` that somebody wants to hear of, and its deliveries.

    `subjects` has the columns `id`, `tenant_id`, `sequence` and `webhook`: jsonb, null or
    ``{"url", "events", "origin"}`` with the URL's scheme, host and port for the origin. `kind` is
    the event's type, null where there is none; `data` is its jsonb. `receivers` chooses among the
    tenant's endpoints; by default those that are enabled and have asked for this kind.
    """
    if receivers is None:
        receivers = and_(WebhookEndpoint.enabled, kind == any_(WebhookEndpoint.events))
    to_endpoints = select(
        subjects.c.id.label("resource_id"),
        WebhookEndpoint.id.label("endpoint_id"),
        cast(null(), Text).label("url"),
        cast(WebhookEndpoint.id, Text).label("destination"),
    ).where(WebhookEndpoint.tenant_id == subjects.c.tenant_id, receivers)
    webhook, tenant = subjects.c.webhook, cast(subjects.c.tenant_id, Text)
    to_own = select(
        subjects.c.id,
        cast(null(), Uuid),
        webhook["url"].astext,
        # One tenant's slow receiver must not take up another's share of the same host.
        tenant
        + literal_column("' '")
        + func.coalesce(webhook["origin"].astext, webhook["url"].astext),
    ).where(webhook["events"].has_key(kind))
    receiver = union_all(to_endpoints, to_own).cte("receiver")
    event = (
        insert(WebhookEvent)
        .from_select(
            ["id", "tenant_id", "type", "resource_id", "sequence", "data"],
            select(
                _new_id(), subjects.c.tenant_id, kind, subjects.c.id, subjects.c.sequence, data
            ).where(subjects.c.id.in_(select(receiver.c.resource_id))),
            include_defaults=False,
        )
        .returning(
            WebhookEvent.id, WebhookEvent.tenant_id, WebhookEvent.type, WebhookEvent.resource_id
        )
        .cte("event")
    )
    delivery = (
        insert(WebhookDelivery)
        .from_select(
            [
                *("id", "tenant_id", "event_id", "event_type", "resource_id"),
                *("endpoint_id", "url", "destination"),
            ],
            select(
                _new_id(),
                event.c.tenant_id,
                event.c.id,
                event.c.type,
                event.c.resource_id,
                receiver.c.endpoint_id,
                receiver.c.url,
                receiver.c.destination,
            ).where(receiver.c.resource_id == event.c.resource_id),
            include_defaults=False,
        )
        .returning(WebhookDelivery.id, WebhookDelivery.resource_id)
        .cte("delivery")
    )
    return Recorded((event, delivery), delivery)


def emit(
    tenant_id: UUID,
    kind: EventType,
    resource_id: UUID,
    data: Mapping[str, Any],
    *,
    sequence: int = 0,
    webhook: Mapping[str, Any] | None = None,
    receivers: ColumnElement[bool] | None = None,
) -> Select[UUID]:
    """Write one event of one resource; the ids of its deliveries, to be published after the commit.

    For whatever changes in more than one statement, as batches do: run this in the transaction
    of the change. `webhook` is the resource's own, as in its row; for `receivers` see `record`.
    """
    subject = select(
        literal(resource_id, Uuid).label("id"),
        literal(tenant_id, Uuid).label("tenant_id"),
        literal(sequence, BigInteger).label("sequence"),
        cast(dict(webhook) if webhook else null(), JSONB).label("webhook"),
    ).cte("subject")
    recorded = record(subject, literal(str(kind), Text), cast(dict(data), JSONB), receivers)
    return select(recorded.deliveries.c.id).add_cte(*recorded.ctes)


def deliveries_of(recorded: Recorded, resource_id: ColumnElement[UUID]) -> ColumnElement[Any]:
    """The ids of a resource's deliveries as an array, null for none; for a statement's answer."""
    made = recorded.deliveries
    return (
        select(func.array_agg(made.c.id)).where(made.c.resource_id == resource_id).scalar_subquery()
    )


def _new_id() -> ColumnElement[UUID]:
    """A UUIDv7 (RFC 9562) made by PostgreSQL, which has `uuidv7()` only from version 18 on.

    A random UUIDv4 with the milliseconds put over its first 48 bits, and two bits set that turn
    the version from 4 to 7.
    """
    milliseconds = "floor(extract(epoch FROM clock_timestamp()) * 1000)::bigint"
    stamped = (
        "overlay(uuid_send(gen_random_uuid())"
        f" PLACING substring(int8send({milliseconds}) FROM 3) FROM 1 FOR 6)"
    )
    return literal_column(f"encode(set_bit(set_bit({stamped}, 52, 1), 53, 1), 'hex')::uuid", Uuid)


def _job_snapshot(job: CTE) -> ColumnElement[Any]:
    """The job as it is now; `shared.webhooks.payloads` makes the wire's form of it."""
    names = (
        *("kind", "state", "model", "session_id", "seeds", "width", "height", "output_format"),
        *("batch_id", "custom_id", "metadata", "error_code", "error_message", "gpu_seconds"),
        *("created_at", "started_at", "finished_at"),
    )
    pairs: list[ColumnElement[Any]] = []
    for name in names:
        pairs += [literal_column(f"'{name}'"), job.c[name]]
    return func.jsonb_build_object(*pairs)
