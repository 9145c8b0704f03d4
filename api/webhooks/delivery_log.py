"""The rules of the delivery log: read it, and ask CPU workers to send again."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from uuid import UUID

from sqlalchemy.ext.asyncio import AsyncSession

from api.context import Resources, parse_id, require_row
from api.core.errors import Problem, not_found
from api.core.principal import Principal
from api.core.serialization import Page, PageRequest
from api.webhooks.schemas import AttemptError, Delivery, DeliveryAttempt, RedeliveryCount
from shared.core.ids import encode_id
from shared.webhooks import delivery_queries, queries
from shared.webhooks.models import (
    BATCH_EVENTS,
    JOB_EVENTS,
    DeliveryState,
    WebhookAttempt,
    WebhookDelivery,
    WebhookEvent,
)

_HINTS = 200
"""Of a range that is sent again, this many at once; the dispatcher offers the rest in rounds."""

_Entry = tuple[WebhookDelivery, WebhookEvent, str | None, list[WebhookAttempt], datetime | None]
"""(delivery, event, endpoint's URL, attempts, until when its receiver holds it back)."""


@dataclass(frozen=True)
class DeliveryFilters:
    """Which deliveries of the log; None and () ask nothing."""

    endpoint_id: UUID | None = None
    resource_id: UUID | None = None
    states: tuple[str, ...] = ()
    events: tuple[str, ...] = ()


async def list_page(
    resources: Resources, principal: Principal, filters: DeliveryFilters, paging: PageRequest
) -> Page[Delivery]:
    """One page of a tenant's deliveries with their attempts, newest first."""
    scope = ("webhook-deliveries", principal.tenant_id, filters)
    before = paging.position(*scope)
    statement = queries.list_deliveries(
        principal.tenant_id, paging.limit + 1, before=before, **vars(filters)
    )
    async with resources.list_transaction(principal, paging.limit) as session:
        deliveries = _collect((await session.execute(statement)).tuples().all())
    return await paging.page(deliveries, _serialize, *scope, position=lambda entry: entry[0].id)


async def get(resources: Resources, principal: Principal, delivery_id: str) -> Delivery:
    """A tenant's delivery with its attempts."""
    row_id = _parse(delivery_id)
    async with resources.tenant_transaction(principal) as session:
        return await show_delivery(session, principal, row_id)


async def redeliver(resources: Resources, principal: Principal, delivery_id: str) -> Delivery:
    """Send a delivery again now, with the same `webhook-id` and the whole schedule before it.

    Raises:
        Problem: 404, or 409 when its endpoint is switched off.
    """
    row_id = _parse(delivery_id)
    async with resources.tenant_transaction(principal) as session:
        row = await require_row(
            session, queries.redeliver(principal.tenant_id, row_id), "webhook delivery"
        )
        if row.endpoint_id is not None:
            await _demand_enabled(session, principal, row.endpoint_id)
        await session.execute(delivery_queries.release_receiver_of(principal.tenant_id, row_id))
        shown = await show_delivery(session, principal, row_id)
    await resources.publisher.publish_deliveries([row_id])
    return shown


async def redeliver_range(
    resources: Resources,
    principal: Principal,
    endpoint_id: str,
    *,
    since: datetime,
    until: datetime | None,
    states: Sequence[str],
) -> RedeliveryCount:
    """Send again what an endpoint has missed since some time, oldest first.

    Raises:
        Problem: 404, or 409 when the endpoint is switched off.
    """
    row_id = parse_id("whe", endpoint_id, "webhook endpoint")
    async with resources.tenant_transaction(principal) as session:
        await session.execute(delivery_queries.lock_destination(str(row_id)))
        await _demand_enabled(session, principal, row_id)
        await session.execute(delivery_queries.release_endpoint(principal.tenant_id, row_id))
        statement = queries.redeliver_range(principal.tenant_id, row_id, since, until, states)
        created = sorted((await session.scalars(statement)).all())
    await resources.publisher.publish_deliveries(created[:_HINTS])
    return RedeliveryCount(deliveries=len(created))


async def show_delivery(session: AsyncSession, principal: Principal, delivery_id: UUID) -> Delivery:
    """One delivery as clients see it.

    Raises:
        Problem: 404.
    """
    statement = queries.get_delivery(principal.tenant_id, delivery_id)
    deliveries = _collect((await session.execute(statement)).tuples().all())
    if not deliveries:
        raise not_found("webhook delivery")
    return _serialize(deliveries[0])


def _collect(rows: Sequence[queries.LogRow]) -> list[_Entry]:
    """One entry for each delivery, in order, with its attempts."""
    entries: dict[UUID, _Entry] = {}
    for delivery, event, url, attempt, held_until in rows:
        entry = entries.setdefault(delivery.id, (delivery, event, url, [], held_until))
        if attempt is not None:
            entry[3].append(attempt)
    return list(entries.values())


def _serialize(entry: _Entry) -> Delivery:
    delivery, event, endpoint_url, attempts, held_until = entry
    is_pending = delivery.state == DeliveryState.PENDING
    is_of_job = event.type in JOB_EVENTS
    is_of_batch = event.type in BATCH_EVENTS
    return Delivery.of(
        delivery,
        id=encode_id("whd", delivery.id),
        event_id=encode_id("evt", event.id),
        event=event.type,
        sequence=event.sequence,
        endpoint_id=encode_id("whe", delivery.endpoint_id) if delivery.endpoint_id else None,
        url=delivery.url or endpoint_url or "",
        job_id=encode_id("job", delivery.resource_id) if is_of_job else None,
        batch_id=encode_id("batch", delivery.resource_id) if is_of_batch else None,
        attempts=[_serialize_attempt(attempt) for attempt in attempts],
        next_attempt_at=max(delivery.due_at, held_until or delivery.due_at) if is_pending else None,
    )


def _serialize_attempt(attempt: WebhookAttempt) -> DeliveryAttempt:
    error = None
    if attempt.error_code is not None:
        error = AttemptError(code=attempt.error_code, message=attempt.error_message or "")
    return DeliveryAttempt.of(attempt, error=error)


async def _demand_enabled(session: AsyncSession, principal: Principal, endpoint_id: UUID) -> None:
    row = await require_row(
        session, queries.get_endpoint(principal.tenant_id, endpoint_id), "webhook endpoint"
    )
    if not row.enabled:
        raise Problem("webhook_endpoint_disabled", "Enable the endpoint first.")


def _parse(delivery_id: str) -> UUID:
    return parse_id("whd", delivery_id, "webhook delivery")
