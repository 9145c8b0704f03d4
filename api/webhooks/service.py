"""The rules of webhook endpoints and secrets: check, register, change, rotate, test."""

from collections.abc import Sequence
from datetime import timedelta
from typing import Any
from uuid import UUID

from sqlalchemy.ext.asyncio import AsyncSession

from api.context import Resources, parse_id, require_row
from api.core.errors import Problem
from api.core.principal import Principal
from api.core.serialization import Page, PageRequest
from api.webhooks.delivery_log import show_delivery
from api.webhooks.schemas import (
    BatchWebhook,
    Delivery,
    Endpoint,
    EndpointCreation,
    EndpointLinks,
    EndpointUpdate,
    EndpointWithSecret,
    JobWebhook,
    TenantSecret,
)
from shared.core.ids import encode_id, new_id
from shared.core.outbound.url import OutboundError, check_url
from shared.core.settings import Settings
from shared.webhooks import delivery_queries, models, outbox, queries
from shared.webhooks.message import new_secret, public_key_text, secret_text, webhook_policy
from shared.webhooks.models import BATCH_EVENTS, DEFAULT_EVENTS, DEFAULT_JOB_EVENTS, EventType


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


def job_webhook(request: JobWebhook | None, settings: Settings) -> dict[str, Any] | None:
    """The `webhook` column of a job; null without one.

    Raises:
        Problem: 422, the URL is not allowed.
    """
    return _column(request, settings, DEFAULT_JOB_EVENTS)


def batch_webhook(request: BatchWebhook | None, settings: Settings) -> dict[str, Any] | None:
    """The `webhook` column of a batch, and of its jobs where it names job events.

    Raises:
        Problem: 422, the URL is not allowed.
    """
    return _column(request, settings, BATCH_EVENTS)


def _column(
    request: JobWebhook | BatchWebhook | None, settings: Settings, default: Sequence[str]
) -> dict[str, Any] | None:
    if request is None:
        return None
    origin = check_target(request.url, settings, "/webhook/url")
    events = [str(event) for event in request.events or default]
    return {"url": request.url, "events": events, "origin": origin}


MAX_ENDPOINTS = 50
"""Of one tenant. Each costs a row for every event that it asks for."""

OLD_SECRET_KEPT = timedelta(hours=24)
"""How long a rotated secret still signs alongside the new one."""

_MAX_SECRETS = 5
"""Signatures in one header, however often somebody rotates."""


async def create(
    resources: Resources, principal: Principal, request: EndpointCreation
) -> EndpointWithSecret:
    """Register a receiver.

    Raises:
        Problem: 422 for a URL that is not allowed, 409 when the tenant has its fill of endpoints.
    """
    check_target(request.url, resources.settings, "/url")
    columns = {
        "id": new_id(),
        "tenant_id": principal.tenant_id,
        "url": request.url,
        "description": request.description,
        "events": [str(event) for event in request.events or DEFAULT_EVENTS],
        "scheme": request.signature,
        "enabled": request.enabled,
        "disabled_reason": None if request.enabled else "by_client",
    }
    async with resources.tenant_transaction(principal) as session:
        await session.execute(queries.lock_endpoints(principal.tenant_id))
        count = await session.scalar(queries.count_endpoints(principal.tenant_id)) or 0
        if count >= MAX_ENDPOINTS:
            raise Problem("too_many_webhook_endpoints", f"A tenant has {MAX_ENDPOINTS} at most.")
        row = (await session.scalars(queries.insert_endpoint(columns))).one()
        secrets = await _renew_secret(session, principal, row.id, row.scheme)
    return _with_secret(resources, row, secrets)


async def get(resources: Resources, principal: Principal, endpoint_id: str) -> Endpoint:
    """A tenant's endpoint."""
    async with resources.tenant_transaction(principal) as session:
        row = await _find(session, principal, endpoint_id)
        secrets = await _secrets(session, principal, row.id)
    return _serialize(resources, row, secrets)


async def list_page(
    resources: Resources, principal: Principal, paging: PageRequest
) -> Page[Endpoint]:
    """One page of a tenant's endpoints, newest first."""
    scope = ("webhook-endpoints", principal.tenant_id)
    before = paging.position(*scope)
    async with resources.tenant_transaction(principal) as session:
        statement = queries.list_endpoints(principal.tenant_id, paging.limit + 1, before)
        rows = (await session.scalars(statement)).all()
        ids = [row.id for row in rows[: paging.limit]]
        of_page = queries.list_secrets_of_endpoints(principal.tenant_id, ids)
        secrets = (await session.scalars(of_page)).all()

    def serialize(row: models.WebhookEndpoint) -> Endpoint:
        own = [secret for secret in secrets if secret.endpoint_id == row.id]
        return _serialize(resources, row, own)

    return await paging.page(rows, serialize, *scope)


async def update(
    resources: Resources, principal: Principal, endpoint_id: str, request: EndpointUpdate
) -> Endpoint:
    """Change an endpoint; switching it off gives up what waits for it.

    Raises:
        Problem: 404, or 422 for a URL that is not allowed.
    """
    changes = request.model_dump(include=request.model_fields_set)
    if request.url is not None:
        check_target(request.url, resources.settings, "/url")
        changes["failing_since"] = None  # Of the receiver before it.
    if request.enabled is not None:
        changes["disabled_reason"] = None if request.enabled else "by_client"
        changes["failing_since"] = None
    row_id = _parse(endpoint_id)
    async with resources.tenant_transaction(principal) as session:
        await session.execute(delivery_queries.lock_destination(str(row_id)))
        row = await require_row(
            session,
            queries.update_endpoint(principal.tenant_id, row_id, changes),
            "webhook endpoint",
        )
        if request.url is not None or request.enabled is not None:
            await session.execute(delivery_queries.release_endpoint(principal.tenant_id, row.id))
        if request.enabled is False:
            await session.execute(queries.give_up_deliveries(row.id))
        secrets = await _secrets(session, principal, row.id)
    return _serialize(resources, row, secrets)


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
    """Make a new secret; the old one signs alongside it for 24 hours.

    Raises:
        Problem: 404.
    """
    async with resources.tenant_transaction(principal) as session:
        row = await _find(session, principal, endpoint_id)
        secrets = await _renew_secret(session, principal, row.id, row.scheme)
    return _with_secret(resources, row, secrets)


async def test(resources: Resources, principal: Principal, endpoint_id: str) -> Delivery:
    """Send `endpoint.test` to this endpoint, enabled or not.

    Raises:
        Problem: 404.
    """
    async with resources.tenant_transaction(principal) as session:
        row = await _find(session, principal, endpoint_id)
        await session.execute(delivery_queries.release_endpoint(principal.tenant_id, row.id))
        about = (principal.tenant_id, EventType.ENDPOINT_TEST, row.id, {"url": row.url})
        emitted = outbox.emit(*about, receivers=outbox.ITSELF)
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
    """Make a new one; the old one signs alongside it for 24 hours."""
    async with resources.tenant_transaction(principal) as session:
        secrets = await _renew_secret(session, principal, None, "v1")
    return _tenant_secret(secrets)


def _serialize(
    resources: Resources, row: models.WebhookEndpoint, secrets: Sequence[models.WebhookSecret]
) -> Endpoint:
    """`secrets` are those that sign now, the current one first."""
    public_id = encode_id("whe", row.id)
    base = f"{resources.settings.public_url}/v1"
    return Endpoint.of(
        row,
        id=public_id,
        signature=row.scheme,
        public_keys=[public_key_text(one.secret) for one in secrets if one.scheme == "v1a"],
        links=EndpointLinks(
            self=f"{base}/webhook-endpoints/{public_id}",
            deliveries=f"{base}/webhook-deliveries?endpoint_id={public_id}",
            test=f"{base}/webhook-endpoints/{public_id}/test",
        ),
    )


def _with_secret(
    resources: Resources, row: models.WebhookEndpoint, secrets: Sequence[models.WebhookSecret]
) -> EndpointWithSecret:
    """For the one answer that shows the current secret."""
    secret = secret_text(secrets[0].secret) if row.scheme == "v1" else None
    return EndpointWithSecret.of(_serialize(resources, row, secrets), secret=secret)


def _tenant_secret(secrets: list[models.WebhookSecret]) -> TenantSecret:
    current, *previous = secrets
    return TenantSecret(
        secret=secret_text(current.secret),
        created_at=current.created_at,
        previous_expires_at=previous[0].expires_at if previous else None,
    )


async def _renew_secret(
    session: AsyncSession, principal: Principal, endpoint_id: UUID | None, scheme: str
) -> list[models.WebhookSecret]:
    owner = principal.tenant_id, endpoint_id
    await session.execute(queries.retire_secret(*owner, OLD_SECRET_KEPT))
    await session.execute(queries.ensure_secret(*owner, scheme, new_secret()))
    await session.execute(queries.delete_old_secrets(*owner, _MAX_SECRETS))
    return await _secrets(session, principal, endpoint_id)


async def _secrets(
    session: AsyncSession, principal: Principal, endpoint_id: UUID | None
) -> list[models.WebhookSecret]:
    statement = queries.list_secrets(principal.tenant_id, endpoint_id)
    return list((await session.scalars(statement)).all())


async def _find(
    session: AsyncSession, principal: Principal, endpoint_id: str
) -> models.WebhookEndpoint:
    return await require_row(
        session, queries.get_endpoint(principal.tenant_id, _parse(endpoint_id)), "webhook endpoint"
    )


def _parse(endpoint_id: str) -> UUID:
    return parse_id("whe", endpoint_id, "webhook endpoint")
