"""A worker's background work: one step, repeated on a thread of its own until it is closed."""

import threading
from collections.abc import Callable
from typing import Self

import redis
from sqlalchemy.exc import SQLAlchemyError

from shared.core.broker import REDIS_AWAY
from shared.core.errors import StorageUnavailable
from shared.core.logging import get_logger

log = get_logger(__name__)

OUTAGES = (SQLAlchemyError, StorageUnavailable, *REDIS_AWAY)
"""What a step may raise while Postgres, Redis or S3 is unavailable; logged without a traceback."""

_POLL_SECONDS = 0.5


class BackgroundLoop:
    """Repeats `step` on a daemon thread. An error is logged and never ends the loop."""

    passing: tuple[type[Exception], ...] = OUTAGES
    """Errors that pass by themselves."""

    def __init__(
        self, name: str, interval: float | None, *, waits_first: bool = False, join: float = 5.0
    ) -> None:
        """Make the loop; `start` begins it.

        Args:
            name: of the thread, and of the loop in log lines.
            interval: seconds between two steps; None: a step follows each `wake`.
            waits_first: the first step comes after the first interval.
            join: seconds that `close` waits for the step in progress; 0: not at all.
        """
        self._interval = interval
        self._waits_first = waits_first
        self._join = join
        self._closing = threading.Event()
        self._wake = threading.Event()
        self._thread = threading.Thread(target=self.run, name=name, daemon=True)

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def is_closing(self) -> bool:
        """Whether no further step will begin."""
        return self._closing.is_set()

    def start(self) -> None:
        """Begin; does nothing the second time."""
        if self._thread.ident is None:
            self._thread.start()

    def wake(self) -> None:
        """Take the next step now, or right after the one in progress."""
        self._wake.set()

    def pause(self, seconds: float) -> None:
        """Wait within a step, but no longer than until the loop is closed."""
        self._closing.wait(seconds)

    def close(self) -> None:
        """Stop after the step in progress."""
        self._closing.set()
        self._wake.set()
        if self._join and self._thread.is_alive():
            self._thread.join(self._join)

    def run(self) -> None:
        """The loop itself, on the calling thread."""
        pause: float | None = 0.0
        if self._waits_first or self._interval is None:
            pause = self._interval
        while True:
            self._wake.wait(pause)
            self._wake.clear()
            if self.is_closing:
                break
            try:
                pause = self.step()
            except Exception as error:
                pause = self.failed(error)
        self.finish()

    def step(self) -> float | None:
        """Do the work once; returns the seconds until the next step, usually the interval."""
        raise NotImplementedError

    def failed(self, error: Exception) -> float | None:
        """Note that a step has failed; returns the seconds until the next one."""
        if isinstance(error, self.passing):
            log.warning("loop_interrupted", loop=self._thread.name, error=type(error).__name__)
        else:
            log.error("loop_failed", loop=self._thread.name, exc_info=error)
        return self._interval

    def finish(self) -> None:
        """Clean up on the loop's thread, after its last step."""


class LeaderLoop(BackgroundLoop):
    """A loop that works while its process leads (see `worker.maintenance.leader`)."""

    def __init__(
        self,
        name: str,
        interval: float,
        is_leader: Callable[[], bool],
        *,
        waits_first: bool = False,
        join: float = 5.0,
    ) -> None:
        super().__init__(name, interval, waits_first=waits_first, join=join)
        self._is_leader = is_leader

    def step(self) -> float | None:
        if self._is_leader():
            return self.lead()
        self.reset()
        return self._interval

    def lead(self) -> float | None:
        """The leader's step; returns as `step` does."""
        raise NotImplementedError

    def reset(self) -> None:
        """Forget what was measured or remembered: another process leads."""


class ChannelListener(BackgroundLoop):
    """Listens to one Redis channel, and connects again whenever the connection is lost."""

    def __init__(self, name: str, client: "redis.Redis", channel: str) -> None:
        super().__init__(name, _POLL_SECONDS, join=2 * _POLL_SECONDS)
        self._redis = client
        self._channel = channel
        self._pubsub: redis.client.PubSub | None = None

    def heard(self, data: bytes | None) -> None:
        """A message has come; None: none for half a second."""
        raise NotImplementedError

    def step(self) -> float:
        data: bytes | None = None
        try:
            data = self._next_message()
        except Exception as error:  # whatever it is, a new connection may help
            log.warning("channel_lost", loop=self._thread.name, error=type(error).__name__)
            self.finish()
            self.pause(_POLL_SECONDS)
        self.heard(data)
        return 0.0

    def finish(self) -> None:
        if self._pubsub is not None:
            pubsub, self._pubsub = self._pubsub, None
            pubsub.close()

    def _next_message(self) -> bytes | None:
        if self._pubsub is None:
            self._pubsub = self._redis.pubsub(  # type: ignore[no-untyped-call]
                ignore_subscribe_messages=True
            )
            self._pubsub.subscribe(self._channel)
        message = self._pubsub.get_message(timeout=_POLL_SECONDS)
        return None if message is None else message["data"]
