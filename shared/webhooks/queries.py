"""SQL of webhook endpoints, their secrets, and the log of deliveries. Each takes the tenant."""

from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

from sqlalchemy import (
    ColumnElement,
    Delete,
    Select,
    Update,
    and_,
    any_,
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
from sqlalchemy.sql.dml import ReturningInsert
from sqlalchemy.sql.selectable import TypedReturnsRows

from shared.webhooks.delivery_queries import receiver_of
from shared.webhooks.models import (
    DeliveryState,
    WebhookAttempt,
    WebhookDelivery,
    WebhookEndpoint,
    WebhookEvent,
    WebhookHold,
    WebhookSecret,
)

NOW = func.clock_timestamp()
EndpointRows = TypedReturnsRows[WebhookEndpoint]
DeliveryRows = TypedReturnsRows[WebhookDelivery]

LogRows = Select[WebhookDelivery, WebhookEvent, str, WebhookAttempt, datetime]
LogRow = tuple[WebhookDelivery, WebhookEvent, str | None, WebhookAttempt | None, datetime | None]
"""(delivery, event, endpoint's URL, attempt, until when the receiver holds it back)."""


# --- Endpoints -------------------------------------------------------------------------------


def find_listener(tenant_id: UUID, event: str) -> Select[UUID]:
    """One of a tenant's endpoints that want this kind of event now."""
    return (
        select(WebhookEndpoint.id)
        .where(
            WebhookEndpoint.tenant_id == tenant_id,
            WebhookEndpoint.enabled,
            literal(event) == any_(WebhookEndpoint.events),
        )
        .limit(1)
    )


def insert_endpoint(endpoint: dict[str, Any]) -> ReturningInsert[WebhookEndpoint]:
    """Register a receiver."""
    return insert(WebhookEndpoint).values(**endpoint).returning(WebhookEndpoint)


def lock_endpoints(tenant_id: UUID) -> Select[Any]:
    """Let one transaction at a time count and add a tenant's endpoints."""
    return select(func.pg_advisory_xact_lock(func.hashtextextended(f"endpoints {tenant_id}", 0)))


def count_endpoints(tenant_id: UUID) -> Select[int]:
    """How many endpoints a tenant has, disabled ones too."""
    return select(func.count()).where(WebhookEndpoint.tenant_id == tenant_id)


def get_endpoint(tenant_id: UUID, endpoint_id: UUID) -> Select[WebhookEndpoint]:
    """A tenant's endpoint."""
    return select(WebhookEndpoint).where(
        WebhookEndpoint.tenant_id == tenant_id, WebhookEndpoint.id == endpoint_id
    )


def list_endpoints(
    tenant_id: UUID, limit: int, before: UUID | None = None
) -> Select[WebhookEndpoint]:
    """A tenant's endpoints, newest first, starting after the one with the id `before`."""
    statement = select(WebhookEndpoint).where(WebhookEndpoint.tenant_id == tenant_id)
    if before is not None:
        statement = statement.where(WebhookEndpoint.id < before)
    return statement.order_by(WebhookEndpoint.id.desc()).limit(limit)


def update_endpoint(tenant_id: UUID, endpoint_id: UUID, changes: dict[str, Any]) -> EndpointRows:
    """Change an endpoint; no row: there is none."""
    return (
        update(WebhookEndpoint)
        .where(WebhookEndpoint.tenant_id == tenant_id, WebhookEndpoint.id == endpoint_id)
        .values(**changes)
        .returning(WebhookEndpoint)
    )


def delete_endpoint(tenant_id: UUID, endpoint_id: UUID) -> Delete:
    """Remove an endpoint, its secrets and its deliveries."""
    return delete(WebhookEndpoint).where(
        WebhookEndpoint.tenant_id == tenant_id, WebhookEndpoint.id == endpoint_id
    )


# --- Secrets ---------------------------------------------------------------------------------


def ensure_secret(tenant_id: UUID, endpoint_id: UUID | None, scheme: str, secret: bytes) -> Insert:
    """Make this the current secret, unless there is one; `endpoint_id` None: the tenant's own."""
    return (
        pg_insert(WebhookSecret)
        .values(tenant_id=tenant_id, endpoint_id=endpoint_id, scheme=scheme, secret=secret)
        .on_conflict_do_nothing()
    )


def retire_secret(tenant_id: UUID, endpoint_id: UUID | None, after: timedelta) -> Update:
    """Give the current secret an end, so that another can become current."""
    return (
        update(WebhookSecret)
        .where(_owned(tenant_id, endpoint_id), WebhookSecret.expires_at.is_(None))
        .values(expires_at=NOW + after)
    )


def delete_old_secrets(tenant_id: UUID, endpoint_id: UUID | None, keep: int) -> Delete:
    """Drop secrets that have ended, and all but the newest `keep`."""
    newest = (
        select(WebhookSecret.id)
        .where(_owned(tenant_id, endpoint_id))
        .order_by(WebhookSecret.id.desc())
        .limit(keep)
    )
    return delete(WebhookSecret).where(
        _owned(tenant_id, endpoint_id),
        or_(WebhookSecret.expires_at < NOW, WebhookSecret.id.not_in(newest)),
    )


def list_secrets(tenant_id: UUID, endpoint_id: UUID | None) -> Select[WebhookSecret]:
    """The secrets to sign with now, the current one first."""
    return _signing_now(_owned(tenant_id, endpoint_id))


def list_secrets_of_endpoints(
    tenant_id: UUID, endpoint_ids: Sequence[UUID]
) -> Select[WebhookSecret]:
    """The same of several endpoints."""
    return _signing_now(
        and_(WebhookSecret.tenant_id == tenant_id, WebhookSecret.endpoint_id.in_(endpoint_ids))
    )


def _signing_now(whose: ColumnElement[bool]) -> Select[WebhookSecret]:
    is_live = or_(WebhookSecret.expires_at.is_(None), WebhookSecret.expires_at > NOW)
    newest_first = WebhookSecret.expires_at.desc().nulls_first()
    return select(WebhookSecret).where(whose, is_live).order_by(newest_first)


def _owned(tenant_id: UUID, endpoint_id: UUID | None) -> ColumnElement[bool]:
    return and_(
        WebhookSecret.tenant_id == tenant_id,
        WebhookSecret.endpoint_id.is_not_distinct_from(endpoint_id),
    )


# --- The log of deliveries -------------------------------------------------------------------


def list_deliveries(
    tenant_id: UUID,
    limit: int,
    *,
    before: UUID | None = None,
    endpoint_id: UUID | None = None,
    resource_id: UUID | None = None,
    states: Sequence[str] = (),
    events: Sequence[str] = (),
) -> LogRows:
    """A tenant's deliveries, newest first.

    A row for each attempt, or one for a delivery without any: a single statement, so that a
    delivery and its attempts are of the same moment.
    """
    chosen = select(WebhookDelivery.id).where(WebhookDelivery.tenant_id == tenant_id)
    if before is not None:
        chosen = chosen.where(WebhookDelivery.id < before)
    if endpoint_id is not None:
        chosen = chosen.where(WebhookDelivery.endpoint_id == endpoint_id)
    if resource_id is not None:
        chosen = chosen.where(WebhookDelivery.resource_id == resource_id)
    if states:
        chosen = chosen.where(WebhookDelivery.state.in_(states))
    if events:
        chosen = chosen.where(WebhookDelivery.event_type.in_(events))
    return _with_attempts(chosen.order_by(WebhookDelivery.id.desc()).limit(limit))


def get_delivery(tenant_id: UUID, delivery_id: UUID) -> LogRows:
    """The same of one delivery."""
    chosen = select(WebhookDelivery.id).where(
        WebhookDelivery.tenant_id == tenant_id, WebhookDelivery.id == delivery_id
    )
    return _with_attempts(chosen)


def _with_attempts(chosen: Select[UUID]) -> LogRows:
    columns = (WebhookDelivery, WebhookEvent, WebhookEndpoint.url, WebhookAttempt)
    return (
        select(*columns, WebhookHold.held_until)
        .join(WebhookEvent, WebhookEvent.id == WebhookDelivery.event_id)
        .outerjoin(WebhookEndpoint, WebhookEndpoint.id == WebhookDelivery.endpoint_id)
        .outerjoin(WebhookAttempt, WebhookAttempt.delivery_id == WebhookDelivery.id)
        .outerjoin(WebhookHold, WebhookHold.receiver == receiver_of())
        .where(WebhookDelivery.id.in_(chosen))
        .order_by(WebhookDelivery.id.desc(), WebhookAttempt.number)
    )


def redeliver(tenant_id: UUID, delivery_id: UUID) -> DeliveryRows:
    """Make a delivery due now, with the whole schedule before it; the id of its event stays."""
    return (
        update(WebhookDelivery)
        .where(WebhookDelivery.tenant_id == tenant_id, WebhookDelivery.id == delivery_id)
        .values(**_DUE_AGAIN)
        .returning(WebhookDelivery)
    )


def redeliver_range(
    tenant_id: UUID,
    endpoint_id: UUID,
    since: datetime,
    until: datetime | None = None,
    states: Sequence[str] = (DeliveryState.FAILED,),
) -> TypedReturnsRows[UUID]:
    """The same for an endpoint's deliveries of a time: those in `states`; their ids."""
    statement = update(WebhookDelivery).where(
        WebhookDelivery.tenant_id == tenant_id,
        WebhookDelivery.endpoint_id == endpoint_id,
        WebhookDelivery.created_at >= since,
        WebhookDelivery.state.in_(states),
    )
    if until is not None:
        statement = statement.where(WebhookDelivery.created_at < until)
    return statement.values(**_DUE_AGAIN).returning(WebhookDelivery.id)


_DUE_AGAIN = {"state": DeliveryState.PENDING, "failures": 0, "due_at": NOW, "finished_at": None}
"""A lease that is running stays: the attempt it covers may yet succeed."""


# --- The health of endpoints -----------------------------------------------------------------


def mark_healthy(endpoint_id: UUID) -> Update:
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


def disable_endpoint(
    endpoint_id: UUID, reason: str, failing_for: timedelta = timedelta(0)
) -> TypedReturnsRows[WebhookEndpoint]:
    """Switch an enabled endpoint off, if it has been failing for that long; no row: it stays on."""
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


def give_up_deliveries(endpoint_id: UUID) -> Update:
    """Fail what waits for an endpoint that was switched off; a redelivery can bring it back."""
    return (
        update(WebhookDelivery)
        .where(
            WebhookDelivery.endpoint_id == endpoint_id,
            WebhookDelivery.state == DeliveryState.PENDING,
        )
        .values(state=DeliveryState.FAILED, finished_at=NOW, lease_until=None)
    )
