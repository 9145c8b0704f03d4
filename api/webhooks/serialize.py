"""Rows of endpoints and deliveries as clients see them."""

from collections.abc import Sequence
from datetime import datetime
from typing import Any

from api.webhooks.schemas import (
    AttemptError,
    Delivery,
    DeliveryAttempt,
    Endpoint,
    EndpointLinks,
    EndpointWithSecret,
)
from shared.core.ids import to_wire
from shared.webhooks import models as rows
from shared.webhooks.events import BATCH_EVENTS, JOB_EVENTS
from shared.webhooks.signing import public_key_text, secret_text


def present_endpoint(
    endpoint: rows.WebhookEndpoint, secrets: Sequence[rows.WebhookSecret], public_url: str
) -> Endpoint:
    """The wire form of an endpoint; `secrets` are those that sign now, the current one first."""
    return Endpoint(**_endpoint(endpoint, secrets, public_url))


def present_with_secret(
    endpoint: rows.WebhookEndpoint, secrets: Sequence[rows.WebhookSecret], public_url: str
) -> EndpointWithSecret:
    """The same with the current secret, for the one answer that shows it."""
    secret = secret_text(secrets[0].secret) if endpoint.scheme == "v1" else None
    return EndpointWithSecret(**_endpoint(endpoint, secrets, public_url), secret=secret)


def _endpoint(
    endpoint: rows.WebhookEndpoint, secrets: Sequence[rows.WebhookSecret], public_url: str
) -> dict[str, Any]:
    wire_id = to_wire("whe", endpoint.id)
    base = f"{public_url.rstrip('/')}/v1"
    return {
        "id": wire_id,
        "url": endpoint.url,
        "description": endpoint.description,
        "events": endpoint.events,
        "enabled": endpoint.enabled,
        "disabled_reason": endpoint.disabled_reason,
        "failing_since": endpoint.failing_since,
        "signature": endpoint.scheme,
        "public_keys": [
            public_key_text(secret.secret) for secret in secrets if secret.scheme == "v1a"
        ],
        "created_at": endpoint.created_at,
        "links": EndpointLinks(
            self=f"{base}/webhook-endpoints/{wire_id}",
            deliveries=f"{base}/webhook-deliveries?endpoint_id={wire_id}",
            test=f"{base}/webhook-endpoints/{wire_id}/test",
        ),
    }


def present_delivery(
    delivery: rows.WebhookDelivery,
    event: rows.WebhookEvent,
    endpoint_url: str | None,
    attempts: Sequence[rows.WebhookAttempt],
    held_until: datetime | None,
) -> Delivery:
    """The wire form of a delivery with its attempts; `held_until` is its receiver's wish."""
    is_pending = delivery.state == rows.DeliveryState.PENDING
    is_of_job = event.type in JOB_EVENTS
    is_of_batch = event.type in BATCH_EVENTS
    return Delivery(
        id=to_wire("whd", delivery.id),
        event_id=to_wire("evt", event.id),
        event=event.type,
        sequence=event.sequence,
        state=delivery.state,
        endpoint_id=to_wire("whe", delivery.endpoint_id) if delivery.endpoint_id else None,
        url=delivery.url or endpoint_url or "",
        job_id=to_wire("job", delivery.resource_id) if is_of_job else None,
        batch_id=to_wire("batch", delivery.resource_id) if is_of_batch else None,
        attempts=[_attempt(attempt) for attempt in attempts],
        next_attempt_at=max(delivery.due_at, held_until or delivery.due_at) if is_pending else None,
        created_at=delivery.created_at,
        finished_at=delivery.finished_at,
    )


def _attempt(attempt: rows.WebhookAttempt) -> DeliveryAttempt:
    error = None
    if attempt.error_code is not None:
        error = AttemptError(code=attempt.error_code, message=attempt.error_message or "")
    return DeliveryAttempt(
        number=attempt.number,
        started_at=attempt.started_at,
        latency_ms=attempt.latency_ms,
        status=attempt.status,
        error=error,
        response=attempt.response,
    )
