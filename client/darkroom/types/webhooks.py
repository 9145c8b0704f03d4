"""Webhook endpoints, deliveries, secrets, and the events that are delivered."""

from collections.abc import Mapping
from datetime import datetime
from typing import Any

from darkroom.decoding import Document

__all__ = [
    "Delivery",
    "DeliveryAttempt",
    "DeliveryError",
    "Endpoint",
    "EndpointWithSecret",
    "RedeliveryCount",
    "TenantSecret",
    "WebhookEvent",
]


class Endpoint(Document, frozen=True, kw_only=True):
    """A registered receiver."""

    id: str
    url: str
    description: str
    events: tuple[str, ...]
    enabled: bool
    disabled_reason: str | None = None
    failing_since: datetime | None = None
    signature: str
    """`v1` (HMAC-SHA256) or `v1a` (ed25519)."""
    public_keys: tuple[str, ...] = ()
    """`whpk_…` of a v1a endpoint, the current one first."""
    created_at: datetime


class EndpointWithSecret(Endpoint, frozen=True, kw_only=True):
    """A registered receiver, with the secret, which is shown only once."""

    hidden = ("secret",)

    secret: str | None = None
    """`whsec_…`; None for v1a, which shares no secret."""


class TenantSecret(Document, frozen=True, kw_only=True):
    """Signs deliveries to a URL that came with a job or batch."""

    hidden = ("secret",)

    secret: str
    created_at: datetime
    previous_expires_at: datetime | None = None


class DeliveryError(Document, frozen=True, kw_only=True):
    """Why an attempt failed."""

    code: str
    message: str | None = None


class DeliveryAttempt(Document, frozen=True, kw_only=True):
    """One request to the receiver."""

    number: int
    started_at: datetime
    latency_ms: float
    status: int | None = None
    error: DeliveryError | None = None
    response: str | None = None


class Delivery(Document, frozen=True, kw_only=True):
    """One event on its way to one receiver."""

    id: str
    event_id: str
    """The `webhook-id` of every attempt."""
    event: str
    sequence: int
    state: str
    """`pending`, `succeeded` or `failed`."""
    endpoint_id: str | None = None
    """None: the job's or batch's own webhook."""
    url: str
    job_id: str | None = None
    batch_id: str | None = None
    attempts: tuple[DeliveryAttempt, ...] = ()
    next_attempt_at: datetime | None = None
    created_at: datetime
    finished_at: datetime | None = None


class RedeliveryCount(Document, frozen=True, kw_only=True):
    """How many deliveries a redelivery of a range has queued."""

    deliveries: int


class WebhookEvent(Document, frozen=True, kw_only=True):
    """The payload of a delivery whose signature has been verified."""

    id: str
    """The same on every attempt and for every receiver: drop those you have seen."""
    type: str
    timestamp: datetime
    sequence: int = 0
    """Counts the changes of the job or batch: a lower number than one you have seen is older."""
    data: Mapping[str, Any]
