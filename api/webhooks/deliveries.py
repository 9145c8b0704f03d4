"""The rules of the delivery log: look at it, and send again."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from uuid import UUID

from sqlalchemy.ext.asyncio import AsyncSession

from api.context import Resources, parse_id
from api.core.errors import Problem, not_found
from api.core.fairness import built
from api.core.principal import Principal
from api.core.serialization import Page, decode_cursor, encode_cursor
from api.webhooks.schemas import Delivery, RedeliveryCount
from api.webhooks.serialize import present_delivery
from shared.webhooks import delivery_queries, queries
from shared.webhooks import models as rows

_HINTS = 200
"""Of a range that is sent again, so many at once; the dispatcher offers the rest in its rounds."""


_Entry = tuple[
    rows.WebhookDelivery,
    rows.WebhookEvent,
    str | None,
    list[rows.WebhookAttempt],
    datetime | None,
]


@dataclass(frozen=True)
class Listing:
    """The filters of the log."""

    endpoint_id: UUID | None = None
    resource_id: UUID | None = None
    states: tuple[str, ...] = ()
    events: tuple[str, ...] = ()


async def list_page(
    resources: Resources, principal: Principal, listing: Listing, limit: int, after: str | None
) -> Page[Delivery]:
    """One page of a tenant's deliveries with their attempts, newest first."""
    scope = ("webhook-deliveries", principal.tenant_id, listing)
    before = decode_cursor(after, *scope) if after is not None else None
    statement = queries.list_deliveries(
        principal.tenant_id,
        limit + 1,
        before=before,
        endpoint_id=listing.endpoint_id,
        resource_id=listing.resource_id,
        states=listing.states,
        events=listing.events,
    )
    async with (
        resources.listing(principal, limit),
        resources.tenant_transaction(principal) as session,
    ):
        found = _collect((await session.execute(statement)).tuples().all())
    page = found[:limit]
    has_more = len(found) > limit
    return Page(
        data=await built(lambda entry: present_delivery(*entry), page),
        has_more=has_more,
        next_cursor=encode_cursor(page[-1][0].id, *scope) if has_more else None,
    )


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
        statement = queries.redeliver(principal.tenant_id, row_id)
        row = (await session.scalars(statement)).one_or_none()
        if row is None:
            raise not_found("webhook delivery")
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
        made = sorted((await session.scalars(statement)).all())
    await resources.publisher.publish_deliveries(made[:_HINTS])
    return RedeliveryCount(deliveries=len(made))


async def show_delivery(session: AsyncSession, principal: Principal, delivery_id: UUID) -> Delivery:
    """One delivery as clients see it.

    Raises:
        Problem: 404.
    """
    statement = queries.get_delivery(principal.tenant_id, delivery_id)
    found = _collect((await session.execute(statement)).tuples().all())
    if not found:
        raise not_found("webhook delivery")
    return present_delivery(*found[0])


def _collect(
    found: Sequence[
        tuple[
            rows.WebhookDelivery,
            rows.WebhookEvent,
            str | None,
            rows.WebhookAttempt | None,
            datetime | None,
        ]
    ],
) -> list[_Entry]:
    """One entry for each delivery, in order, with its attempts."""
    entries: dict[UUID, _Entry] = {}
    for delivery, event, url, attempt, held_until in found:
        entry = entries.setdefault(delivery.id, (delivery, event, url, [], held_until))
        if attempt is not None:
            entry[3].append(attempt)
    return list(entries.values())


async def _demand_enabled(session: AsyncSession, principal: Principal, endpoint_id: UUID) -> None:
    statement = queries.get_endpoint(principal.tenant_id, endpoint_id)
    row = (await session.scalars(statement)).one_or_none()
    if row is None:
        raise not_found("webhook endpoint")
    if not row.enabled:
        raise Problem("webhook_endpoint_disabled", "Enable the endpoint first.")


def _parse(delivery_id: str) -> UUID:
    return parse_id("whd", delivery_id, "webhook delivery")
