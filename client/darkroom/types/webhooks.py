"""Webhook endpoints, deliveries, secrets, and the events that are delivered."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from darkroom.decoding import Document


@dataclass(frozen=True, kw_only=True)
class Endpoint(Document):
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


@dataclass(frozen=True, kw_only=True)
class EndpointWithSecret(Endpoint):
    """A registered receiver, with the secret that is shown this once."""

    secret: str | None = field(default=None, repr=False)
    """`whsec_…`; None for v1a, which shares none."""


@dataclass(frozen=True, kw_only=True)
class TenantSecret(Document):
    """Signs what goes to a URL that came with a job or batch."""

    secret: str = field(repr=False)
    created_at: datetime
    previous_expires_at: datetime | None = None


@dataclass(frozen=True, kw_only=True)
class DeliveryError(Document):
    """Why an attempt failed."""

    code: str
    message: str | None = None


@dataclass(frozen=True, kw_only=True)
class DeliveryAttempt(Document):
    """One request to the receiver."""

    number: int
    started_at: datetime
    latency_ms: float
    status: int | None = None
    error: DeliveryError | None = None
    response: str | None = None


@dataclass(frozen=True, kw_only=True)
class Delivery(Document):
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


@dataclass(frozen=True, kw_only=True)
class RedeliveryCount(Document):
    """What a redelivery of a range has set in motion."""

    deliveries: int


@dataclass(frozen=True, kw_only=True)
class WebhookEvent(Document):
    """What a delivery carries, once its signature has been verified."""

    id: str
    """The same on every attempt and to every receiver: drop what you have seen."""
    type: str
    timestamp: datetime
    sequence: int = 0
    """Counts the changes of the job or batch: what is lower than you have seen is older."""
    data: Mapping[str, Any]
