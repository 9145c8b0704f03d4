"""SQL of deliveries: which are due, claiming them, their outcome. For workers, across tenants.

A delivery is claimed under a lease and fenced by its count of attempts, as jobs are. A lock on
its destination lets one transaction at a time count what is on its way there, so that the limit
holds however many workers there are. Whoever changes several deliveries of a destination takes
the same lock first, so that no two wait for each other's rows.
"""

from datetime import timedelta
from typing import Any
from uuid import UUID

from sqlalchemy import (
    ColumnElement,
    DateTime,
    Delete,
    Select,
    Text,
    case,
    cast,
    delete,
    func,
    insert,
    literal,
    or_,
    select,
    update,
)
from sqlalchemy.dialects.postgresql import Insert
from sqlalchemy.dialects.postgresql import insert as pg_insert
from sqlalchemy.orm import aliased
from sqlalchemy.sql.selectable import TypedReturnsRows

from shared.core.database import cached_query
from shared.webhooks.models import (
    DeliveryState,
    WebhookAttempt,
    WebhookDelivery,
    WebhookEndpoint,
    WebhookEvent,
    WebhookHold,
)

NOW = func.clock_timestamp()

AT_ONCE = 4
"""Requests to one destination at the same time."""

AT_ONCE_WHILE_FAILING = 1
"""The same for an endpoint whose last attempt failed: a dead receiver takes up one thread."""

_LOCK_CLASS = 0x0D3B
"""Namespace of destinations among the two-key advisory locks."""


def get_destination(delivery_id: UUID) -> Select[str, UUID]:
    """(destination, tenant) of a delivery."""
    return select(WebhookDelivery.destination, WebhookDelivery.tenant_id).where(
        WebhookDelivery.id == delivery_id
    )


def lock_destination(destination: str) -> Select[Any]:
    """Lock a destination (an endpoint's is its id) until the end of the transaction."""
    return select(
        func.pg_advisory_xact_lock(_LOCK_CLASS, func.hashtext(literal(destination, Text)))
    )


def claim_next(destination: str, lease: timedelta) -> TypedReturnsRows[WebhookDelivery]:
    """Take what has been due longest for a destination, if that has room. Under its lock."""
    waiting = aliased(WebhookDelivery)
    first = (
        select(waiting.id)
        .where(
            waiting.destination == destination,
            waiting.state == DeliveryState.PENDING,
            waiting.due_at <= func.statement_timestamp(),
            or_(waiting.lease_until.is_(None), waiting.lease_until < NOW),
            ~is_held(waiting),
        )
        .order_by(waiting.due_at)
        .limit(1)
        .with_for_update(skip_locked=True)
        .scalar_subquery()
    )
    under_way = aliased(WebhookDelivery)
    busy = (
        select(func.count())
        .where(
            under_way.destination == WebhookDelivery.destination,
            under_way.state == DeliveryState.PENDING,
            under_way.lease_until > NOW,
        )
        .scalar_subquery()
    )
    return (
        update(WebhookDelivery)
        .where(
            WebhookDelivery.id == first,
            WebhookDelivery.state == DeliveryState.PENDING,
            WebhookDelivery.due_at <= NOW,
            or_(WebhookDelivery.lease_until.is_(None), WebhookDelivery.lease_until < NOW),
            busy < _limit(WebhookDelivery.endpoint_id),
        )
        .values(lease_until=NOW + lease, attempts=WebhookDelivery.attempts + 1)
        .returning(WebhookDelivery)
    )


def _limit(endpoint_id: Any) -> ColumnElement[int]:
    failing = (
        select(WebhookEndpoint.id)
        .where(WebhookEndpoint.id == endpoint_id, WebhookEndpoint.failing_since.is_not(None))
        .exists()
    )
    return case((failing, AT_ONCE_WHILE_FAILING), else_=AT_ONCE)


def get_receiver(delivery: WebhookDelivery) -> Select[WebhookEvent, WebhookEndpoint | None, Any]:
    """(event, endpoint or None for a job's own webhook, the database's time)."""
    return (
        select(WebhookEvent, WebhookEndpoint, NOW)
        .outerjoin(WebhookEndpoint, WebhookEndpoint.id == delivery.endpoint_id)
        .where(WebhookEvent.id == delivery.event_id)
    )


def insert_attempt(attempt: dict[str, Any]) -> Any:
    """Put an attempt on record."""
    return insert(WebhookAttempt).values(**attempt)


def succeed(delivery_id: UUID, attempt: int) -> TypedReturnsRows[UUID]:
    """pending → succeeded, for the holder of the attempt only."""
    return _end(delivery_id, attempt, state=DeliveryState.SUCCEEDED, finished_at=NOW)


def fail(delivery_id: UUID, attempt: int) -> TypedReturnsRows[UUID]:
    """pending → failed: no attempt is left, or another would be of no use."""
    return _end(
        delivery_id,
        attempt,
        state=DeliveryState.FAILED,
        finished_at=NOW,
        failures=WebhookDelivery.failures + 1,
    )


def try_again(delivery_id: UUID, attempt: int, gap: timedelta | None) -> TypedReturnsRows[UUID]:
    """Stays pending, due after `gap`; None: as soon as its receiver's hold ends.

    Due as before then, so that nothing that came after it overtakes it.
    """
    due = {} if gap is None else {"due_at": NOW + gap}
    return _end(delivery_id, attempt, failures=WebhookDelivery.failures + 1, **due)


def _end(delivery_id: UUID, attempt: int, **changes: Any) -> TypedReturnsRows[UUID]:
    return (
        update(WebhookDelivery)
        .where(
            WebhookDelivery.id == delivery_id,
            WebhookDelivery.attempts == attempt,
            WebhookDelivery.state == DeliveryState.PENDING,
        )
        .values(lease_until=None, **changes)
        .returning(WebhookDelivery.id)
    )


# --- Receivers that hold deliveries back -----------------------------------------------------


def receiver_of(delivery: Any = WebhookDelivery) -> ColumnElement[str]:
    """What a `Retry-After` is said for: an endpoint, or the path of a job's own webhook.

    Not the whole host, where others may listen behind other paths; nor the query, by which a
    client may tell jobs apart that go to one receiver.
    """
    path = func.split_part(func.split_part(delivery.url, "#", 1), "?", 1)
    # Hashed, since an index has no room for the longest URLs.
    own = cast(delivery.tenant_id, Text) + " " + func.md5(path)
    return func.coalesce(cast(delivery.endpoint_id, Text), own, type_=Text)


def hold(delivery_id: UUID, url: str, gap: timedelta) -> Insert:
    """Nothing goes to this delivery's receiver before `gap` has passed, now waiting or new.

    Unless its endpoint has left the `url` that has asked for it.
    """
    requested = (
        select(
            receiver_of(),
            WebhookDelivery.tenant_id,
            cast(NOW + literal(gap), DateTime(timezone=True)),
        )
        .outerjoin(WebhookEndpoint, WebhookEndpoint.id == WebhookDelivery.endpoint_id)
        .where(
            WebhookDelivery.id == delivery_id,
            func.coalesce(WebhookEndpoint.url, WebhookDelivery.url) == url,
        )
    )
    statement = pg_insert(WebhookHold).from_select(
        ["receiver", "tenant_id", "held_until"], requested
    )
    later = func.greatest(WebhookHold.held_until, statement.excluded.held_until)
    return statement.on_conflict_do_update(
        index_elements=[WebhookHold.receiver], set_={"held_until": later}
    )


def release_endpoint(tenant_id: UUID, endpoint_id: UUID) -> Delete:
    """End the hold of an endpoint: a client wants it tried now."""
    return delete(WebhookHold).where(
        WebhookHold.tenant_id == tenant_id, WebhookHold.receiver == str(endpoint_id)
    )


def release_receiver_of(tenant_id: UUID, delivery_id: UUID) -> Delete:
    """The same for the receiver of a delivery."""
    receiver = (
        select(receiver_of())
        .where(WebhookDelivery.tenant_id == tenant_id, WebhookDelivery.id == delivery_id)
        .scalar_subquery()
    )
    return delete(WebhookHold).where(
        WebhookHold.tenant_id == tenant_id, WebhookHold.receiver == receiver
    )


def is_held(delivery: Any) -> ColumnElement[bool]:
    """Whether the receiver of a delivery holds it back now."""
    return (
        select(WebhookHold.receiver)
        .where(WebhookHold.receiver == receiver_of(delivery), WebhookHold.held_until > NOW)
        .exists()
    )


def purge_holds() -> Delete:
    """Those that have ended."""
    return delete(WebhookHold).where(WebhookHold.held_until < func.statement_timestamp())


# --- The dispatcher --------------------------------------------------------------------------


@cached_query()
def list_due(limit: int) -> Select[UUID]:
    """Deliveries that a worker should take now: for each destination as many as it has room for.

    Tenants take turns, so that the backlog of one does not fill the list.
    """
    is_leased = WebhookDelivery.lease_until > NOW
    place = func.row_number().over(
        partition_by=WebhookDelivery.destination,
        # Those under way come first and so take up the first places.
        order_by=(case((is_leased, 0), else_=1), WebhookDelivery.due_at),
    )
    due = (
        select(
            WebhookDelivery.id,
            WebhookDelivery.tenant_id,
            WebhookDelivery.due_at,
            func.coalesce(is_leased, False).label("is_leased"),
            place.label("place"),
            _limit(WebhookDelivery.endpoint_id).label("room"),
        )
        .where(
            WebhookDelivery.state == DeliveryState.PENDING,
            WebhookDelivery.due_at <= func.statement_timestamp(),
            ~is_held(WebhookDelivery),
        )
        .subquery()
    )
    turn = func.row_number().over(partition_by=due.c.tenant_id, order_by=due.c.due_at)
    return (
        select(due.c.id)
        .where(~due.c.is_leased, due.c.place <= due.c.room)
        .order_by(turn, due.c.due_at)
        .limit(limit)
    )


def purge(older_than: timedelta, limit: int) -> Delete:
    """Retention: events of that age, with their deliveries and attempts, unless one is pending."""
    pending = (
        select(WebhookDelivery.id)
        .where(
            WebhookDelivery.event_id == WebhookEvent.id,
            WebhookDelivery.state == DeliveryState.PENDING,
        )
        .exists()
    )
    old = (
        select(WebhookEvent.id)
        .where(WebhookEvent.created_at < func.statement_timestamp() - older_than, ~pending)
        .order_by(WebhookEvent.created_at)
        .limit(limit)
    )
    return delete(WebhookEvent).where(WebhookEvent.id.in_(old))
