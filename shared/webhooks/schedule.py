"""When a delivery is tried again, and where webhooks may be sent.

The gaps are those that the Standard Webhooks specification (1.0.0, "Deliverability and
reliability") gives as its example: ten attempts over about 75.6 hours.
"""

from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime

from shared.core.outbound.addresses import LOOPBACK, OutboundPolicy
from shared.core.settings import Settings

GAPS = (
    timedelta(0),
    timedelta(seconds=5),
    timedelta(minutes=5),
    timedelta(minutes=30),
    timedelta(hours=2),
    timedelta(hours=5),
    timedelta(hours=10),
    timedelta(hours=14),
    timedelta(hours=20),
    timedelta(hours=24),
)
"""Before each attempt, counted from the end of the one before; the first goes out at once."""


JITTER = 0.1
"""A gap is up to this share longer or shorter, lest an outage's backlog march in step."""


def next_gap(failures: int, jitter: float) -> timedelta | None:
    """How long to wait after `failures` failed attempts (≥ 1); None: the schedule is used up.

    `jitter` is a number from -1 to 1, drawn by the caller.
    """
    if failures >= len(GAPS):
        return None
    return GAPS[failures] * (1 + JITTER * jitter)


def parse_retry_after(value: str | None, now: datetime) -> timedelta | None:
    """The duration of a Retry-After field (RFC 9110, 10.2.3); None where there is none to read.

    Seconds or an HTTP date, which is compared with `now` (aware). A date that has passed is zero.
    """
    if value is None:
        return None
    value = value.strip()
    if value.isascii() and value.isdecimal():
        return timedelta(seconds=min(int(value[:10]), 10**8))
    try:
        moment = parsedate_to_datetime(value)
    except (ValueError, OverflowError):
        return None
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=UTC)
    return max(moment - now, timedelta(0))


def webhook_policy(settings: Settings) -> OutboundPolicy:
    """Public https, and what the operator allows besides; the local stack allows loopback.

    On one's own machine, that is, so that webhooks can be tried out there.
    """
    if settings.environment == "local":
        return OutboundPolicy(
            allow_http=True, allowed_networks=(*LOOPBACK, *settings.webhook_allowed_networks)
        )
    return OutboundPolicy(
        allow_http=settings.webhook_allow_http,
        allowed_networks=settings.webhook_allowed_networks,
    )
