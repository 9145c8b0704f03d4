"""One request to a webhook's receiver: what is sent, what its answer means, what is recorded."""

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import Enum, auto
from uuid import UUID

from sqlalchemy.orm import Session
from sqlalchemy.sql.selectable import TypedReturnsRows

from shared.core import telemetry
from shared.core.ids import encode_id
from shared.core.outbound.client import GuardedClient, OutboundResponse
from shared.core.outbound.url import OutboundError
from shared.core.storage import Storage
from shared.images.models import Image
from shared.webhooks import delivery_queries, message, outbox, queries
from shared.webhooks.message import SigningKey, build_body, parse_retry_after, signed_headers
from shared.webhooks.models import (
    SENT_ONCE,
    EventType,
    WebhookDelivery,
    WebhookEndpoint,
    WebhookEvent,
)

MAX_READ = 64 * 1024
"""Bytes read of an answer; what a receiver says beyond them is its own affair."""

MAX_KEPT = 1024
"""Bytes kept of an answer, for whoever looks into the log."""

FAILING_FOR = timedelta(days=5)
"""An endpoint that has failed for this long is disabled."""

_POST = {"http.request.method": "POST"}
_THROTTLED = frozenset({429, 503})


class Verdict(Enum):
    """What an attempt means for its delivery."""

    DELIVERED = auto()
    TRY_AGAIN = auto()
    GIVE_UP = auto()
    """Another attempt would be of no use, or was never promised."""
    GONE = auto()
    """410: the receiver wants no more of anything."""


CODES: Mapping[Verdict, tuple[str, ...]] = {
    Verdict.DELIVERED: ("none",),
    Verdict.TRY_AGAIN: (
        *("http_error", "redirected", "internal_error"),
        *(kind.code for kind in OutboundError.__subclasses__() if kind.retryable),
    ),
    Verdict.GIVE_UP: tuple(
        kind.code for kind in OutboundError.__subclasses__() if not kind.retryable
    ),
    Verdict.GONE: ("gone",),
}
"""The codes that attempts with each verdict can have, in metrics."""


@dataclass(frozen=True)
class Claimed:
    """A delivery in flight, with all that the request is made of."""

    delivery: WebhookDelivery
    event: WebhookEvent
    endpoint: WebhookEndpoint | None
    """None for a job's or batch's own webhook."""
    keys: Sequence[SigningKey]
    images: Sequence[Image]
    started_at: datetime
    """By the database's clock."""

    @property
    def url(self) -> str:
        """Where it goes, as registered now."""
        url = self.endpoint.url if self.endpoint is not None else self.delivery.url
        assert url is not None  # noqa: S101 - a constraint of the table
        return url


@dataclass(frozen=True)
class AttemptResult:
    """What came of an attempt."""

    verdict: Verdict
    latency_ms: float = 0.0
    status: int | None = None
    error_code: str | None = None
    error_message: str | None = None
    response: str | None = None
    retry_after: timedelta | None = None


def attempt(
    claimed: Claimed, client: GuardedClient, storage: Storage, public_url: str, timeout: timedelta
) -> AttemptResult:
    """Send one signed request through the guard and judge what comes of it, be it an error."""
    event = claimed.event
    body = build_body(event, claimed.images, storage, public_url)
    headers = {
        "content-type": "application/json",
        **signed_headers(encode_id("evt", event.id), claimed.started_at, body, claimed.keys),
    }
    try:
        with telemetry.span("POST webhook", "client", attributes=_POST) as span:
            context = telemetry.traceparent()
            if context is not None:
                headers[telemetry.TRACEPARENT] = context
            response = client.send(
                "POST",
                claimed.url,
                headers,
                body,
                deadline_s=timeout.total_seconds(),
                max_bytes=MAX_READ,
            )
            span.set({"http.response.status_code": response.status})
    except OutboundError as error:
        return AttemptResult(
            Verdict.TRY_AGAIN if error.retryable else Verdict.GIVE_UP,
            error_code=error.code,
            error_message=str(error),
        )
    return judge(response, claimed.started_at)


def judge(response: OutboundResponse, now: datetime) -> AttemptResult:
    """2xx is success; all else is failure, a redirect too; 410 is the end."""
    status = response.status
    verdict = Verdict.TRY_AGAIN
    code: str | None = "http_error"
    message: str | None = f"The receiver answered {status}."
    if 200 <= status < 300:
        verdict, code, message = Verdict.DELIVERED, None, None
    elif 300 <= status < 400:
        code, message = "redirected", "The receiver answered with a redirect; none is followed."
    elif status == 410:
        verdict, code, message = Verdict.GONE, "gone", "The receiver wants no more webhooks (410)."
    retry_after = None
    if status in _THROTTLED:
        retry_after = parse_retry_after(response.headers.get("retry-after"), now)
    return AttemptResult(
        verdict,
        latency_ms=round(response.elapsed_s * 1000, 1),
        status=status,
        error_code=code,
        error_message=message,
        response=_readable(response.body),
        retry_after=retry_after,
    )


def _readable(body: bytes) -> str:
    # PostgreSQL's text has room for anything but NUL.
    return body[:MAX_KEPT].decode("utf-8", "replace").replace("\0", "\N{REPLACEMENT CHARACTER}")


class AttemptSuperseded(Exception):
    """The lease ran out meanwhile, and another worker has the delivery."""


def record(
    session: Session, claimed: Claimed, result: AttemptResult, longest_hold: timedelta
) -> list[UUID]:
    """Write what came of an attempt; the ids of deliveries that this leads to.

    A receiver's `Retry-After` counts up to `longest_hold`.

    Raises:
        AttemptSuperseded: nothing was written.
    """
    delivery = claimed.delivery
    was_well = claimed.endpoint is None or claimed.endpoint.failing_since is None
    if result.verdict is not Verdict.DELIVERED or not was_well:
        # What follows may change other rows too; who does that has the lock before any row.
        session.execute(delivery_queries.lock_destination(delivery.destination))
    hold = None if result.retry_after is None else min(result.retry_after, longest_hold)
    if session.scalar(_transition(claimed, result, hold)) is None:
        raise AttemptSuperseded
    session.execute(
        delivery_queries.insert_attempt(
            {
                "delivery_id": delivery.id,
                "number": delivery.attempts,
                "tenant_id": delivery.tenant_id,
                "started_at": claimed.started_at,
                "latency_ms": result.latency_ms,
                "status": result.status,
                "error_code": result.error_code,
                "error_message": result.error_message,
                "response": result.response,
            }
        )
    )
    if hold is not None:
        session.execute(delivery_queries.hold(delivery.id, claimed.url, hold))
    if claimed.endpoint is None:
        return []
    return _note_health(session, claimed.endpoint, claimed, result)


def _transition(
    claimed: Claimed, result: AttemptResult, hold: timedelta | None
) -> TypedReturnsRows[UUID]:
    delivery = claimed.delivery
    held = delivery.id, delivery.attempts
    if result.verdict is Verdict.DELIVERED:
        return delivery_queries.succeed(*held)
    if result.verdict is Verdict.TRY_AGAIN and delivery.event_type not in SENT_ONCE:
        jitter = random.uniform(-1, 1)
        gap = message.next_gap(delivery.failures + 1, jitter)
        if gap is not None:
            is_within = hold is not None and gap <= hold
            return delivery_queries.try_again(*held, None if is_within else gap)
    return delivery_queries.fail(*held)


def _note_health(
    session: Session, endpoint: WebhookEndpoint, claimed: Claimed, result: AttemptResult
) -> list[UUID]:
    if result.verdict is Verdict.DELIVERED:
        if endpoint.failing_since is not None:
            session.execute(queries.mark_healthy(endpoint.id))
        return []
    if claimed.event.type == EventType.ENDPOINT_TEST and result.verdict is not Verdict.GONE:
        return []  # Somebody is trying things out.
    session.execute(queries.mark_failing(endpoint.id))
    if result.verdict is Verdict.GONE:
        switched_off = session.scalar(queries.disable_endpoint(endpoint.id, "gone"))
    else:
        switched_off = session.scalar(queries.disable_endpoint(endpoint.id, "failing", FAILING_FOR))
    if switched_off is None:
        return []
    session.execute(queries.give_up_deliveries(endpoint.id))
    data = {"url": switched_off.url, "reason": switched_off.disabled_reason}
    notified = outbox.emit(
        endpoint.tenant_id,
        EventType.ENDPOINT_DISABLED,
        endpoint.id,
        data,
        receivers=outbox.OTHERS,
    )
    return session.scalar(notified) or []
