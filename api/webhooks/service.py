"""The rules of webhook endpoints and secrets: check, register, change, rotate, test."""

from collections.abc import Sequence
from datetime import timedelta
from typing import Any
from uuid import UUID

from sqlalchemy.ext.asyncio import AsyncSession

from api.context import Resources, parse_id
from api.core.errors import Problem, not_found
from api.core.principal import Principal
from api.core.serialization import Page, decode_cursor, encode_cursor
from api.webhooks.deliveries import show_delivery
from api.webhooks.schemas import (
    BatchWebhook,
    Delivery,
    Endpoint,
    EndpointCreation,
    EndpointUpdate,
    EndpointWithSecret,
    JobWebhook,
    TenantSecret,
)
from api.webhooks.serialize import present_endpoint, present_with_secret
from shared.core.ids import new_id
from shared.core.outbound.url import OutboundError, check_url
from shared.core.settings import Settings
from shared.webhooks import delivery_queries, outbox, queries
from shared.webhooks import models as rows
from shared.webhooks.events import (
    DEFAULT_BATCH_EVENTS,
    DEFAULT_EVENTS,
    DEFAULT_JOB_EVENTS,
    EventType,
)
from shared.webhooks.schedule import webhook_policy
from shared.webhooks.signing import new_secret, secret_text


def check_target(url: str, settings: Settings, pointer: str) -> str:
    """The origin (scheme, host, port) of a URL that webhooks may go to, as far as can be told now.

    The guard judges the addresses again at each attempt.

    Raises:
        Problem: 422 at `pointer`, with the guard's own code.
    """
    try:
        target = check_url(url, webhook_policy(settings))
    except OutboundError as refusal:
        raise Problem.invalid(pointer, refusal.code, str(refusal)) from None
    return f"{target.scheme}://{target.host}:{target.port}"


def job_webhook(asked: JobWebhook | None, settings: Settings) -> dict[str, Any] | None:
    """The `webhook` column of a job; null without one.

    Raises:
        Problem: 422, the URL is not allowed.
    """
    return _column(asked, settings, DEFAULT_JOB_EVENTS)


def batch_webhook(asked: BatchWebhook | None, settings: Settings) -> dict[str, Any] | None:
    """The `webhook` column of a batch, and of its jobs where it names job events.

    Raises:
        Problem: 422, the URL is not allowed.
    """
    return _column(asked, settings, DEFAULT_BATCH_EVENTS)


def _column(
    asked: JobWebhook | BatchWebhook | None, settings: Settings, default: Sequence[str]
) -> dict[str, Any] | None:
    if asked is None:
        return None
    origin = check_target(asked.url, settings, "/webhook/url")
    events = [str(event) for event in asked.events or default]
    return {"url": asked.url, "events": events, "origin": origin}


MAX_ENDPOINTS = 50
"""Of one tenant. Each costs a row for every event that it asks for."""


OLD_SECRET_KEPT = timedelta(hours=24)
"""How long a rotated secret still signs beside the new one."""


_MAX_SECRETS = 5
"""Signatures in one header, however often somebody rotates."""


async def create(
    resources: Resources, principal: Principal, asked: EndpointCreation
) -> EndpointWithSecret:
    """Register a receiver.

    Raises:
        Problem: 422 for a URL that is not allowed, 409 when the tenant has its fill of endpoints.
    """
    check_target(asked.url, resources.settings, "/url")
    columns = {
        "id": new_id(),
        "tenant_id": principal.tenant_id,
        "url": asked.url,
        "description": asked.description,
        "events": [str(event) for event in asked.events or DEFAULT_EVENTS],
        "scheme": asked.signature,
        "enabled": asked.enabled,
        "disabled_reason": None if asked.enabled else "by_client",
    }
    async with resources.tenant_transaction(principal) as session:
        await session.execute(queries.lock_endpoints(principal.tenant_id))
        count = await session.scalar(queries.count_endpoints(principal.tenant_id)) or 0
        if count >= MAX_ENDPOINTS:
            raise Problem("too_many_webhook_endpoints", f"A tenant has {MAX_ENDPOINTS} at most.")
        row = (await session.scalars(queries.insert_endpoint(columns))).one()
        secrets = await _renew_secret(session, principal, row.id, row.scheme)
    return present_with_secret(row, secrets, resources.settings.public_url)


async def get(resources: Resources, principal: Principal, endpoint_id: str) -> Endpoint:
    """A tenant's endpoint."""
    async with resources.tenant_transaction(principal) as session:
        row = await _find(session, principal, endpoint_id)
        secrets = await _secrets(session, principal, row.id)
    return present_endpoint(row, secrets, resources.settings.public_url)


async def list_page(
    resources: Resources, principal: Principal, limit: int, after: str | None
) -> Page[Endpoint]:
    """One page of a tenant's endpoints, newest first."""
    scope = ("webhook-endpoints", principal.tenant_id)
    before = decode_cursor(after, *scope) if after is not None else None
    async with resources.tenant_transaction(principal) as session:
        statement = queries.list_endpoints(principal.tenant_id, limit + 1, before)
        found = (await session.scalars(statement)).all()
        page = found[:limit]
        of_page = queries.list_secrets_of_endpoints(principal.tenant_id, [row.id for row in page])
        secrets = (await session.scalars(of_page)).all()
    has_more = len(found) > limit
    public_url = resources.settings.public_url
    return Page(
        data=[
            present_endpoint(row, [s for s in secrets if s.endpoint_id == row.id], public_url)
            for row in page
        ],
        has_more=has_more,
        next_cursor=encode_cursor(page[-1].id, *scope) if has_more else None,
    )


async def update(
    resources: Resources, principal: Principal, endpoint_id: str, asked: EndpointUpdate
) -> Endpoint:
    """Change an endpoint; switching it off gives up what waits for it.

    Raises:
        Problem: 404, or 422 for a URL that is not allowed.
    """
    changes = asked.model_dump(include=asked.model_fields_set)
    if asked.url is not None:
        check_target(asked.url, resources.settings, "/url")
        changes["failing_since"] = None  # Of the receiver before it.
    if asked.enabled is not None:
        changes["disabled_reason"] = None if asked.enabled else "by_client"
        changes["failing_since"] = None
    row_id = _parse(endpoint_id)
    async with resources.tenant_transaction(principal) as session:
        await session.execute(delivery_queries.lock_destination(str(row_id)))
        statement = queries.update_endpoint(principal.tenant_id, row_id, changes)
        row = (await session.scalars(statement)).one_or_none()
        if row is None:
            raise not_found("webhook endpoint")
        if asked.url is not None or asked.enabled is not None:
            await session.execute(delivery_queries.release_endpoint(principal.tenant_id, row.id))
        if asked.enabled is False:
            await session.execute(delivery_queries.give_up(row.id))
        secrets = await _secrets(session, principal, row.id)
    return present_endpoint(row, secrets, resources.settings.public_url)


async def delete(resources: Resources, principal: Principal, endpoint_id: str) -> None:
    """Remove an endpoint with its secrets and its log.

    Raises:
        Problem: 404.
    """
    row_id = _parse(endpoint_id)
    async with resources.tenant_transaction(principal) as session:
        await session.execute(delivery_queries.lock_destination(str(row_id)))
        row = await _find(session, principal, endpoint_id)
        await session.execute(queries.delete_endpoint(principal.tenant_id, row.id))


async def rotate_secret(
    resources: Resources, principal: Principal, endpoint_id: str
) -> EndpointWithSecret:
    """Make a new secret; the old one signs beside it for 24 hours.

    Raises:
        Problem: 404.
    """
    async with resources.tenant_transaction(principal) as session:
        row = await _find(session, principal, endpoint_id)
        secrets = await _renew_secret(session, principal, row.id, row.scheme)
    return present_with_secret(row, secrets, resources.settings.public_url)


async def test(resources: Resources, principal: Principal, endpoint_id: str) -> Delivery:
    """Send `endpoint.test` to this endpoint, enabled or not.

    Raises:
        Problem: 404.
    """
    async with resources.tenant_transaction(principal) as session:
        row = await _find(session, principal, endpoint_id)
        await session.execute(delivery_queries.release_endpoint(principal.tenant_id, row.id))
        emitted = outbox.emit(
            principal.tenant_id,
            EventType.ENDPOINT_TEST,
            row.id,
            {"url": row.url},
            receivers=outbox.ITSELF,
        )
        [delivery_id] = (await session.scalars(emitted)).one() or []
        shown = await show_delivery(session, principal, delivery_id)
    await resources.publisher.publish_deliveries([delivery_id])
    return shown


async def get_tenant_secret(resources: Resources, principal: Principal) -> TenantSecret:
    """The tenant's own secret, made on first use."""
    async with resources.tenant_transaction(principal) as session:
        await session.execute(queries.ensure_secret(principal.tenant_id, None, "v1", new_secret()))
        secrets = await _secrets(session, principal, None)
    return _tenant_secret(secrets)


async def rotate_tenant_secret(resources: Resources, principal: Principal) -> TenantSecret:
    """Make a new one; the old one signs beside it for 24 hours."""
    async with resources.tenant_transaction(principal) as session:
        secrets = await _renew_secret(session, principal, None, "v1")
    return _tenant_secret(secrets)


def _tenant_secret(secrets: list[rows.WebhookSecret]) -> TenantSecret:
    current, *previous = secrets
    return TenantSecret(
        secret=secret_text(current.secret),
        created_at=current.created_at,
        previous_expires_at=previous[0].expires_at if previous else None,
    )


async def _renew_secret(
    session: AsyncSession, principal: Principal, endpoint_id: UUID | None, scheme: str
) -> list[rows.WebhookSecret]:
    owner = principal.tenant_id, endpoint_id
    await session.execute(queries.retire_secret(*owner, OLD_SECRET_KEPT))
    await session.execute(queries.ensure_secret(*owner, scheme, new_secret()))
    await session.execute(queries.forget_secrets(*owner, _MAX_SECRETS))
    return await _secrets(session, principal, endpoint_id)


async def _secrets(
    session: AsyncSession, principal: Principal, endpoint_id: UUID | None
) -> list[rows.WebhookSecret]:
    statement = queries.list_secrets(principal.tenant_id, endpoint_id)
    return list((await session.scalars(statement)).all())


async def _find(
    session: AsyncSession, principal: Principal, endpoint_id: str
) -> rows.WebhookEndpoint:
    statement = queries.get_endpoint(principal.tenant_id, _parse(endpoint_id))
    row = (await session.scalars(statement)).one_or_none()
    if row is None:
        raise not_found("webhook endpoint")
    return row


def _parse(endpoint_id: str) -> UUID:
    return parse_id("whe", endpoint_id, "webhook endpoint")
