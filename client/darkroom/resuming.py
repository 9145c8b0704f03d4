"""What a stream that is taken up again goes by, over all connections. Pure: the sockets are
elsewhere."""

import time
from dataclasses import dataclass, field

import httpx2

from darkroom.types.events import JobChanged, JobEvent, decode_event

_FIRST_PAUSE = 0.2
"""Seconds; doubled each time."""
_LONGEST_PAUSE = 5.0


@dataclass
class Outage:
    """For how long a stream has been broken. A connection on which nothing happens is not."""

    _since: float | None = None

    def is_over(self) -> None:
        """Something came."""
        self._since = None

    def outlasts(self, patience: float) -> bool:
        """A connection broke; whether that has gone on for so many seconds."""
        now = time.monotonic()
        self._since = now if self._since is None else self._since
        return now - self._since > patience


@dataclass
class EventReader:
    """What has come, and what to ask for when a connection is opened again."""

    position: str | None
    """The id of the newest event."""
    sequence: int = -1
    """Of the newest snapshot."""
    is_over: bool = False
    failures: int = 0
    """Connections that ended since the last event."""
    outage: Outage = field(default_factory=Outage)

    @property
    def headers(self) -> dict[str, str]:
        """What a connection is opened with."""
        resumed = {} if self.position is None else {"Last-Event-ID": self.position}
        return {"Accept": "text/event-stream", **resumed}

    def read(self, told: httpx2.ServerSentEvent) -> JobEvent | None:
        """The event; None if it is known already, or of a kind that is not known."""
        self.failures = 0
        self.outage.is_over()
        self.position = told.id or self.position
        event = decode_event(told.event, told.id, told.data)
        if isinstance(event, JobChanged):
            if event.job.sequence <= self.sequence:
                return None  # a snapshot of what is known already
            self.sequence = event.job.sequence
            self.is_over = event.job.is_final
        return event

    def pause(self) -> float:
        """Seconds until the next connection."""
        self.failures += 1
        return min(_FIRST_PAUSE * 2.0 ** min(self.failures - 1, 8), _LONGEST_PAUSE)
