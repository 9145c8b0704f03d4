"""Webhooks: their events, and the tables of endpoints, secrets and deliveries."""

from enum import StrEnum
from uuid import UUID

from sqlalchemy import (
    BigInteger,
    CheckConstraint,
    ForeignKey,
    Index,
    Integer,
    LargeBinary,
    Text,
    text,
)
from sqlalchemy.dialects.postgresql import ARRAY
from sqlalchemy.orm import Mapped, mapped_column

from shared.core.database import Base, CreatedAt, Id, Instant, Json
from shared.jobs.state import JobState


class EventType(StrEnum):
    """Every event's name on the wire. A name never changes its meaning."""

    JOB_STARTED = "job.started"
    """A worker has begun an attempt; a job that is tried again starts again."""
    JOB_PROGRESS = "job.progress"
    """Some steps are done. Only for those who ask; never repeated, and dropped when late."""
    JOB_SUCCEEDED = "job.succeeded"
    JOB_FAILED = "job.failed"
    JOB_CANCELED = "job.canceled"
    JOB_EXPIRED = "job.expired"
    BATCH_VALIDATED = "batch.validated"
    """All lines of the file were read; its jobs begin."""
    BATCH_COMPLETED = "batch.completed"
    BATCH_FAILED = "batch.failed"
    BATCH_CANCELED = "batch.canceled"
    ENDPOINT_TEST = "endpoint.test"
    """Sent by POST /v1/webhook-endpoints/{id}/test to that endpoint alone, enabled or not."""
    ENDPOINT_DISABLED = "endpoint.disabled"
    """Darkroom has given up on an endpoint; told to all other endpoints of its tenant."""


ENDS_OF_JOBS = {
    JobState.SUCCEEDED: EventType.JOB_SUCCEEDED,
    JobState.FAILED: EventType.JOB_FAILED,
    JobState.CANCELED: EventType.JOB_CANCELED,
    JobState.EXPIRED: EventType.JOB_EXPIRED,
}
"""State that a transition leads to -> its event. What leads elsewhere has none."""

STARTS_OF_JOBS = {JobState.RUNNING: EventType.JOB_STARTED}
"""The event of a claim. Only of a claim: a running job also changes when it is asked to stop."""

JOB_EVENTS = (EventType.JOB_STARTED, EventType.JOB_PROGRESS, *ENDS_OF_JOBS.values())

BATCH_EVENTS = (
    EventType.BATCH_VALIDATED,
    EventType.BATCH_COMPLETED,
    EventType.BATCH_FAILED,
    EventType.BATCH_CANCELED,
)

DEFAULT_JOB_EVENTS = tuple(ENDS_OF_JOBS.values())
"""What a job's own webhook gets when it names no events; a batch's gets `BATCH_EVENTS`."""

DEFAULT_EVENTS = (*DEFAULT_JOB_EVENTS, *BATCH_EVENTS)
"""What an endpoint gets when it names no events: how things ended, not how they go."""

SENT_ONCE = frozenset({EventType.JOB_PROGRESS})
"""Best effort: one attempt, soon or never."""


class DeliveryState(StrEnum):
    """Where a delivery is. A redelivery makes a finished one pending again."""

    PENDING = "pending"
    """Due at `due_at`, or in flight until `lease_until`."""
    SUCCEEDED = "succeeded"
    """The receiver has answered 2xx."""
    FAILED = "failed"
    """Given up: every attempt failed, or another would be of no use."""


class WebhookEndpoint(Base):
    """A receiver that a tenant has registered for some kinds of events."""

    __tablename__ = "webhook_endpoints"
    __table_args__ = (
        Index("ix_webhook_endpoints_tenant", "tenant_id", "id"),
        CheckConstraint("scheme IN ('v1', 'v1a')", name="scheme_is_known"),
        CheckConstraint("NOT enabled OR disabled_reason IS NULL", name="enabled_has_no_reason"),
    )

    id: Mapped[Id]
    tenant_id: Mapped[UUID] = mapped_column(ForeignKey("tenants.id", ondelete="CASCADE"))
    url: Mapped[str] = mapped_column(Text)
    description: Mapped[str] = mapped_column(Text, server_default=text("''"))
    events: Mapped[list[str]] = mapped_column(ARRAY(Text))
    scheme: Mapped[str] = mapped_column(Text)
    """``v1`` (HMAC-SHA256, a shared secret) or ``v1a`` (ed25519, a public key)."""
    enabled: Mapped[bool] = mapped_column(server_default=text("true"))
    disabled_reason: Mapped[str | None] = mapped_column(Text)
    """``gone`` (it answered 410), ``failing`` (for days), ``by_client``; null while enabled."""
    failing_since: Mapped[Instant | None]
    """The first failure since the last success."""
    created_at: Mapped[CreatedAt]


class WebhookSecret(Base):
    """A signing secret of an endpoint, or, without one, of a tenant for its jobs' own webhooks."""

    __tablename__ = "webhook_secrets"
    __table_args__ = (
        # One current secret for each owner; those being rotated out have an end.
        Index(
            "uq_webhook_secrets_current",
            "tenant_id",
            "endpoint_id",
            unique=True,
            postgresql_nulls_not_distinct=True,
            postgresql_where=text("expires_at IS NULL"),
        ),
        Index("ix_webhook_secrets_endpoint_id", "endpoint_id"),
        CheckConstraint("scheme IN ('v1', 'v1a')", name="scheme_is_known"),
    )

    id: Mapped[Id]
    tenant_id: Mapped[UUID] = mapped_column(ForeignKey("tenants.id", ondelete="CASCADE"))
    endpoint_id: Mapped[UUID | None] = mapped_column(
        ForeignKey("webhook_endpoints.id", ondelete="CASCADE")
    )
    scheme: Mapped[str] = mapped_column(Text)
    secret: Mapped[bytes] = mapped_column(LargeBinary)
    """32 random bytes: the HMAC's key, or the ed25519 private key's seed. Not hashed: whoever
    signs must have it, so whoever reads this table can sign."""
    created_at: Mapped[CreatedAt]
    expires_at: Mapped[Instant | None]


class WebhookEvent(Base):
    """Something that happened, as it was then; kept only if there is a receiver."""

    __tablename__ = "webhook_events"
    __table_args__ = (
        Index("ix_webhook_events_created_at", "created_at"),
        Index("ix_webhook_events_resource_id", "resource_id"),
    )

    id: Mapped[Id]
    """On the wire the `webhook-id`: the same to every receiver and on every attempt."""
    tenant_id: Mapped[UUID] = mapped_column(ForeignKey("tenants.id", ondelete="CASCADE"))
    type: Mapped[str] = mapped_column(Text)
    resource_id: Mapped[UUID]
    """The job, batch or endpoint that it is about."""
    sequence: Mapped[int] = mapped_column(BigInteger)
    """The resource's own count of its changes, by which receivers put events in order."""
    data: Mapped[Json]
    created_at: Mapped[CreatedAt]


class WebhookDelivery(Base):
    """One event on its way to one receiver."""

    __tablename__ = "webhook_deliveries"
    __table_args__ = (
        Index("ix_webhook_deliveries_tenant", "tenant_id", "id"),
        Index("ix_webhook_deliveries_event_id", "event_id"),
        Index("ix_webhook_deliveries_endpoint", "endpoint_id", "id"),
        Index("ix_webhook_deliveries_resource_id", "resource_id"),
        Index(
            "ix_webhook_deliveries_pending",
            "destination",
            "due_at",
            postgresql_where=text("state = 'pending'"),
        ),
        CheckConstraint("state IN ('failed', 'pending', 'succeeded')", name="state_is_known"),
        CheckConstraint(
            "(state = 'pending') = (finished_at IS NULL)", name="finished_has_finished_at"
        ),
        CheckConstraint("state = 'pending' OR lease_until IS NULL", name="finished_has_no_lease"),
        CheckConstraint("(endpoint_id IS NULL) = (url IS NOT NULL)", name="one_receiver"),
    )

    id: Mapped[Id]
    tenant_id: Mapped[UUID] = mapped_column(ForeignKey("tenants.id", ondelete="CASCADE"))
    event_id: Mapped[UUID] = mapped_column(ForeignKey("webhook_events.id", ondelete="CASCADE"))
    event_type: Mapped[str] = mapped_column(Text)
    resource_id: Mapped[UUID]
    endpoint_id: Mapped[UUID | None] = mapped_column(
        ForeignKey("webhook_endpoints.id", ondelete="CASCADE")
    )
    url: Mapped[str | None] = mapped_column(Text)
    """Of a job's or batch's own webhook; an endpoint's URL is looked up at each attempt."""
    destination: Mapped[str] = mapped_column(Text)
    """Deliveries with the same one share a limit of how many go out at once."""
    state: Mapped[str] = mapped_column(Text, server_default=text("'pending'"))
    attempts: Mapped[int] = mapped_column(Integer, server_default=text("0"))
    """Attempts ever begun; fences an attempt whose lease ran out."""
    failures: Mapped[int] = mapped_column(Integer, server_default=text("0"))
    """Attempts failed since the event, or since a redelivery was asked for: the schedule's step."""
    due_at: Mapped[CreatedAt]
    """Earliest next attempt, unless its receiver holds deliveries back; oldest goes first."""
    lease_until: Mapped[Instant | None]
    """A worker is at it; one that has not reported by then is taken for dead."""
    created_at: Mapped[CreatedAt]
    finished_at: Mapped[Instant | None]


class WebhookHold(Base):
    """A receiver has asked (`Retry-After`) that nothing be sent to it before some time."""

    __tablename__ = "webhook_holds"
    __table_args__ = (Index("ix_webhook_holds_held_until", "held_until"),)

    receiver: Mapped[str] = mapped_column(Text, primary_key=True)
    """Whom it holds for; see `shared.webhooks.delivery_queries.receiver_of`."""
    tenant_id: Mapped[UUID] = mapped_column(ForeignKey("tenants.id", ondelete="CASCADE"))
    held_until: Mapped[Instant]


class WebhookAttempt(Base):
    """One request to a receiver and what came of it."""

    __tablename__ = "webhook_attempts"

    delivery_id: Mapped[UUID] = mapped_column(
        ForeignKey("webhook_deliveries.id", ondelete="CASCADE"), primary_key=True
    )
    number: Mapped[int] = mapped_column(Integer, primary_key=True)
    tenant_id: Mapped[UUID] = mapped_column(ForeignKey("tenants.id", ondelete="CASCADE"))
    started_at: Mapped[Instant]
    latency_ms: Mapped[float]
    status: Mapped[int | None] = mapped_column(Integer)
    """The HTTP status; null when there was no answer."""
    error_code: Mapped[str | None] = mapped_column(Text)
    error_message: Mapped[str | None] = mapped_column(Text)
    response: Mapped[str | None] = mapped_column(Text)
    """The beginning of the answer's body, 1 kB at most."""
