"""Requests per minute: count each request of a key that has such a quota."""

from fastapi import Request

from api.deps import Resources
from api.middleware import EXTRA_HEADERS
from api.problems import Problem
from api.publishing import RedisDown
from shared.quotas import Quotas
from shared.quotas.rates import WINDOW, Window


async def count_request(
    resources: Resources, request: Request, key_id: str, quotas: Quotas
) -> bool:
    """Count the request; False when Redis cannot say: reading goes on, spending does not.

    Raises:
        Problem: 429 `rate_limited`.
    """
    if quotas.requests_per_minute is None:
        return True
    if resources.circuit.is_open:
        return False
    try:
        window = await resources.circuit.call(
            resources.rates.count(key_id, quotas.requests_per_minute)
        )
    except RedisDown:
        return False
    request.scope[EXTRA_HEADERS].update(rate_headers(window))
    if not window.allowed:
        raise Problem(
            "rate_limited",
            f"This key may send {window.limit} requests a minute.",
            headers={"Retry-After": str(window.seconds_to_reset)},
        )
    return True


def rate_headers(window: Window) -> dict[str, str]:
    """Structured fields of the IETF's draft-ietf-httpapi-ratelimit-headers."""
    return {
        "RateLimit-Policy": f'"requests";q={window.limit};w={WINDOW}',
        "RateLimit": f'"requests";r={window.left};t={window.seconds_to_reset}',
    }
