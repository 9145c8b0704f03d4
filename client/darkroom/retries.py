"""Whether and when a request is sent again, and how a broken stream resumes. No I/O happens here.

A request is repeatable if it is idempotent, by its nature or because it has an `Idempotency-Key`.
Any other is sent again only if the service cannot have acted upon it: the connection was never
made, or the answer is a 429.
"""

import random
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime

import httpx2

from darkroom.types.jobs import JobChanged, JobEvent, decode_event

_FIRST_PAUSE = 0.25
"""Seconds; doubled each time."""
_LONGEST_PAUSE = 8.0
_LONGEST_RETRY_AFTER = 60.0
"""Seconds; a longer `Retry-After` raises the exception at once."""
_PASSING = frozenset({429, 502, 503, 504})
_FIRST_RECONNECT = 0.2
_LONGEST_RECONNECT = 5.0
"""The same for streams."""
_NEVER_SENT = (httpx2.ConnectError, httpx2.ConnectTimeout, httpx2.PoolTimeout)


def retry_after(headers: Mapping[str, str], now: datetime) -> float | None:
    """Seconds in `Retry-After` (RFC 9110 10.2.3), which holds seconds or a date."""
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
    """At most `retries` times; with `retry_timeout`, as often as fits into that many seconds."""

    retries: int
    retry_timeout: float | None = None

    def after_failure(
        self, failure: Exception, *, repeatable: bool, attempt: int, elapsed: float
    ) -> float | None:
        """Seconds to wait after a request without an answer; None: give up.

        Args:
            failure: what httpx2 raised.
            repeatable: whether the request is idempotent.
            attempt: how many attempts were made before this one.
            elapsed: seconds since the first attempt.
        """
        if not repeatable and not isinstance(failure, _NEVER_SENT):
            return None
        return self._pause(attempt, elapsed)

    def after_answer(
        self,
        status: int,
        requested: float | None,
        *,
        repeatable: bool,
        attempt: int,
        elapsed: float,
    ) -> float | None:
        """The same after an answer of status ≥ 400 with `Retry-After: requested`."""
        if status not in _PASSING or (not repeatable and status != 429):
            return None
        left = _LONGEST_RETRY_AFTER if self.retry_timeout is None else self.retry_timeout - elapsed
        if requested is not None and requested > min(left, _LONGEST_RETRY_AFTER):
            return None
        pause = self._pause(attempt, elapsed)
        if pause is None or requested is None:
            return pause
        return requested + random.uniform(0, 0.1 * requested + 0.1)

    def _pause(self, attempt: int, elapsed: float) -> float | None:
        if self.retry_timeout is None and attempt >= self.retries:
            return None
        if self.retry_timeout is not None and elapsed >= self.retry_timeout:
            return None
        longest = min(_LONGEST_PAUSE, _FIRST_PAUSE * 2.0 ** min(attempt, 10))
        return random.uniform(longest / 2, longest)


@dataclass
class Outage:
    """How long a stream has been broken. A connection on which nothing happens is not broken."""

    _since: float | None = None

    def is_over(self) -> None:
        """Data has arrived."""
        self._since = None

    def outlasts(self, retry_timeout: float) -> bool:
        """Note a broken connection; whether the outage now exceeds `retry_timeout` seconds."""
        now = time.monotonic()
        self._since = now if self._since is None else self._since
        return now - self._since > retry_timeout


@dataclass
class EventReader:
    """What a job's stream has delivered, over all of its connections."""

    position: str | None
    """The id of the latest event."""
    sequence: int = -1
    """Of the latest snapshot of the job."""
    is_over: bool = False
    failures: int = 0
    """Connections that ended since the latest event."""
    outage: Outage = field(default_factory=Outage)

    @property
    def headers(self) -> dict[str, str]:
        """Headers that open a connection after the latest event."""
        resumed = {} if self.position is None else {"Last-Event-ID": self.position}
        return {"Accept": "text/event-stream", **resumed}

    def read(self, received: httpx2.ServerSentEvent) -> JobEvent | None:
        """The event; None for a repeated snapshot or an unknown kind of event."""
        self.failures = 0
        self.outage.is_over()
        self.position = received.id or self.position
        event = decode_event(received.event, received.id, received.data)
        if isinstance(event, JobChanged):
            if event.job.sequence <= self.sequence:
                return None
            self.sequence = event.job.sequence
            self.is_over = event.job.is_final
        return event

    def pause(self) -> float:
        """Seconds to wait before the next connection."""
        self.failures += 1
        return min(_FIRST_RECONNECT * 2.0 ** min(self.failures - 1, 8), _LONGEST_RECONNECT)
