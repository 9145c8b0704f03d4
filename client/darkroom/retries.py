"""Whether a request is sent again, and when. Pure: time and chance come from the caller.

A request is repeatable if sending it twice does no more than sending it once: by its nature, or
because it carries an `Idempotency-Key`. One that is not is sent again only where the service
cannot have acted upon it: the connection was never made, or the answer is a 429.
"""

import random
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime

import httpx2

_FIRST_PAUSE = 0.25
"""Seconds; doubled each time."""
_LONGEST_PAUSE = 8.0
_LONGEST_RETRY_AFTER = 60.0
"""Seconds; who is told to wait longer is told so at once, by an exception."""
_PASSING = frozenset({429, 502, 503, 504})
_NEVER_SENT = (httpx2.ConnectError, httpx2.ConnectTimeout, httpx2.PoolTimeout)


def retry_after(headers: Mapping[str, str], now: datetime) -> float | None:
    """Seconds of `Retry-After` (RFC 9110 10.2.3), which gives seconds or a date."""
    text = headers.get("retry-after", "").strip()
    if text.isdigit():
        return float(text)
    try:
        moment = parsedate_to_datetime(text)
    except ValueError:
        return None
    return max(0.0, (moment.astimezone(UTC) - now).total_seconds())


@dataclass(frozen=True)
class RetryPolicy:
    """At most `retries` times; with `patience`, as often as that many seconds allow."""

    retries: int
    patience: float | None = None

    def after_failure(
        self, failure: Exception, *, repeatable: bool, attempt: int, elapsed: float
    ) -> float | None:
        """Seconds until the next try after no answer came; None: give up.

        Args:
            failure: what httpx2 raised.
            repeatable: whether the request may have been acted upon already.
            attempt: how many tries were made before this one.
            elapsed: seconds since the first try.
        """
        if not repeatable and not isinstance(failure, _NEVER_SENT):
            return None
        return self._pause(attempt, elapsed)

    def after_answer(
        self,
        status: int,
        told: float | None,
        *,
        repeatable: bool,
        attempt: int,
        elapsed: float,
    ) -> float | None:
        """The same after an answer of status ≥ 400, whose `Retry-After` says `told` seconds."""
        if status not in _PASSING or (not repeatable and status != 429):
            return None
        left = _LONGEST_RETRY_AFTER if self.patience is None else self.patience - elapsed
        if told is not None and told > min(left, _LONGEST_RETRY_AFTER):
            return None
        pause = self._pause(attempt, elapsed)
        if pause is None or told is None:
            return pause
        return told + random.uniform(0, 0.1 * told + 0.1)

    def _pause(self, attempt: int, elapsed: float) -> float | None:
        if self.patience is None and attempt >= self.retries:
            return None
        if self.patience is not None and elapsed >= self.patience:
            return None
        longest = min(_LONGEST_PAUSE, _FIRST_PAUSE * 2.0 ** min(attempt, 10))
        return random.uniform(longest / 2, longest)
