"""One request to a webhook's receiver: what is sent, and what its answer means."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import Enum, auto

from shared import telemetry
from shared.gallery.models import Image
from shared.ids import to_wire
from shared.outbound import GuardedClient, OutboundError, OutboundResponse
from shared.storage import Storage
from shared.webhooks.models import WebhookDelivery, WebhookEndpoint, WebhookEvent
from shared.webhooks.payloads import build_body
from shared.webhooks.schedule import parse_retry_after
from shared.webhooks.signing import SigningKey, signed_headers

MAX_READ = 64 * 1024
"""Bytes read of an answer; what a receiver says beyond them is its own affair."""
MAX_KEPT = 1024
"""Bytes kept of an answer, for whoever looks into the log."""
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


@dataclass(frozen=True)
class Claimed:
    """A delivery in this worker's hands, with all that the request is made of."""

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
class Outcome:
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
) -> Outcome:
    """Send one signed request through the guard and judge what comes back. Raises nothing of it."""
    event = claimed.event
    body = build_body(event, claimed.images, storage, public_url)
    headers = {
        "content-type": "application/json",
        **signed_headers(to_wire("evt", event.id), claimed.started_at, body, claimed.keys),
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
        return Outcome(
            Verdict.TRY_AGAIN if error.retryable else Verdict.GIVE_UP,
            error_code=error.code,
            error_message=str(error),
        )
    return judge(response, claimed.started_at)


def judge(response: OutboundResponse, now: datetime) -> Outcome:
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
    return Outcome(
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
