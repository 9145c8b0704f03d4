"""SQL of delivering: who is due, who takes it, what came of it. For workers, across tenants.

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
    Delete,
    Select,
    Text,
    Update,
    case,
    delete,
    func,
    insert,
    literal,
    or_,
    select,
    update,
)
from sqlalchemy.orm import aliased
from sqlalchemy.sql.selectable import TypedReturnsRows

from shared.webhooks.models import (
    DeliveryState,
    WebhookAttempt,
    WebhookDelivery,
    WebhookEndpoint,
    WebhookEvent,
)

NOW = func.clock_timestamp()

AT_ONCE = 4
"""Requests to one destination at the same time."""
AT_ONCE_WHILE_FAILING = 1
"""The same for an endpoint whose last attempt failed: a dead receiver takes up one thread."""

_LOCK_CLASS = 0x0D3B
"""Namespace of destinations among the two-key advisory locks."""


def lock_destination_of(delivery_id: UUID) -> Select[str, Any]:
    """(destination, …) of a delivery, after a lock on it until the end of the transaction."""
    lock = func.pg_advisory_xact_lock(_LOCK_CLASS, func.hashtext(WebhookDelivery.destination))
    return select(WebhookDelivery.destination, lock).where(WebhookDelivery.id == delivery_id)


def lock_destination(destination: str) -> Select[Any]:
    """Lock a destination (an endpoint's is its id) until the end of the transaction."""
    return select(
        func.pg_advisory_xact_lock(_LOCK_CLASS, func.hashtext(literal(destination, Text)))
    )


def claim(delivery_id: UUID, lease: timedelta) -> TypedReturnsRows[WebhookDelivery]:
    """Take a delivery, if it is due and its destination has room. Under the destination's lock."""
    return _claim(WebhookDelivery.id == delivery_id, lease)


def claim_next(destination: str, lease: timedelta) -> TypedReturnsRows[WebhookDelivery]:
    """Take what has been due longest for a destination. Under the destination's lock."""
    waiting = aliased(WebhookDelivery)
    first = (
        select(waiting.id)
        .where(
            waiting.destination == destination,
            waiting.state == DeliveryState.PENDING,
            waiting.due_at <= func.statement_timestamp(),
            or_(waiting.lease_until.is_(None), waiting.lease_until < NOW),
        )
        .order_by(waiting.due_at)
        .limit(1)
        .with_for_update(skip_locked=True)
        .scalar_subquery()
    )
    return _claim(WebhookDelivery.id == first, lease)


def _claim(which: ColumnElement[bool], lease: timedelta) -> TypedReturnsRows[WebhookDelivery]:
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
            which,
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


def get_receiver(
    delivery: WebhookDelivery,
) -> Select[WebhookEvent, WebhookEndpoint | None, Any]:
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


def try_again(delivery_id: UUID, attempt: int, gap: timedelta) -> TypedReturnsRows[UUID]:
    """Stays pending, due after `gap`."""
    return _end(delivery_id, attempt, due_at=NOW + gap, failures=WebhookDelivery.failures + 1)


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


def postpone(destination: str, gap: timedelta) -> Update:
    """Nothing goes to this destination before `gap` has passed: its receiver asked for that."""
    return (
        update(WebhookDelivery)
        .where(
            WebhookDelivery.destination == destination,
            WebhookDelivery.state == DeliveryState.PENDING,
            WebhookDelivery.due_at < NOW + gap,
        )
        .values(due_at=NOW + gap)
    )


# --- The health of endpoints -----------------------------------------------------------------


def mark_well(endpoint_id: UUID) -> Update:
    """The receiver has answered 2xx."""
    return (
        update(WebhookEndpoint)
        .where(WebhookEndpoint.id == endpoint_id, WebhookEndpoint.failing_since.is_not(None))
        .values(failing_since=None)
    )


def mark_failing(endpoint_id: UUID) -> Update:
    """An attempt has failed; the first since a success is remembered."""
    return (
        update(WebhookEndpoint)
        .where(WebhookEndpoint.id == endpoint_id, WebhookEndpoint.failing_since.is_(None))
        .values(failing_since=NOW)
    )


def disable(
    endpoint_id: UUID, reason: str, failing_for: timedelta = timedelta(0)
) -> TypedReturnsRows[WebhookEndpoint]:
    """Switch an enabled endpoint off, if it has been failing for so long; no row: it stays on."""
    return (
        update(WebhookEndpoint)
        .where(
            WebhookEndpoint.id == endpoint_id,
            WebhookEndpoint.enabled,
            WebhookEndpoint.failing_since <= NOW - failing_for,
        )
        .values(enabled=False, disabled_reason=reason)
        .returning(WebhookEndpoint)
    )


def give_up(endpoint_id: UUID) -> Update:
    """Fail what waits for an endpoint that was switched off; a redelivery can bring it back."""
    return (
        update(WebhookDelivery)
        .where(
            WebhookDelivery.endpoint_id == endpoint_id,
            WebhookDelivery.state == DeliveryState.PENDING,
        )
        .values(state=DeliveryState.FAILED, finished_at=NOW, lease_until=None)
    )


# --- The dispatcher --------------------------------------------------------------------------


def list_due(limit: int) -> Select[UUID]:
    """Deliveries that a worker should take now: for each destination as many as it has room for."""
    is_leased = WebhookDelivery.lease_until > NOW
    place = func.row_number().over(
        partition_by=WebhookDelivery.destination,
        # Those under way come first and so take up the first places.
        order_by=(case((is_leased, 0), else_=1), WebhookDelivery.due_at),
    )
    due = (
        select(
            WebhookDelivery.id,
            WebhookDelivery.due_at,
            func.coalesce(is_leased, False).label("is_leased"),
            place.label("place"),
            _limit(WebhookDelivery.endpoint_id).label("room"),
        )
        .where(
            WebhookDelivery.state == DeliveryState.PENDING,
            WebhookDelivery.due_at <= func.statement_timestamp(),
        )
        .subquery()
    )
    return (
        select(due.c.id)
        .where(~due.c.is_leased, due.c.place <= due.c.room)
        .order_by(due.c.due_at)
        .limit(limit)
    )


def forget(older_than: timedelta, limit: int) -> Delete:
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
