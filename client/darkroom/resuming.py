"""Where a client is in a job's events, over all connections. Pure: the sockets are elsewhere."""

import time
from dataclasses import dataclass, field

import httpx2

from darkroom.types.events import JobChanged, JobEvent, decode_event

_FIRST_PAUSE = 0.2
"""Seconds; doubled each time."""
_LONGEST_PAUSE = 5.0


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
    heard: float = field(default_factory=time.monotonic)

    @property
    def headers(self) -> dict[str, str]:
        """What a connection is opened with."""
        resumed = {} if self.position is None else {"Last-Event-ID": self.position}
        return {"Accept": "text/event-stream", **resumed}

    @property
    def quiet_seconds(self) -> float:
        """Since the last event. Every connection begins with one, so more means trouble."""
        return time.monotonic() - self.heard

    def read(self, told: httpx2.ServerSentEvent) -> JobEvent | None:
        """The event; None if it is known already, or of a kind that is not known."""
        self.failures, self.heard = 0, time.monotonic()
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
