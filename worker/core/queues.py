"""Which queues a worker consumes; a consumer that takes nothing ends the process."""

import os
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

import redis
from celery import Celery, signals

from shared.core import broker
from shared.core.broker import InteractiveFirst
from shared.core.logging import get_logger
from worker.core.loop import BackgroundLoop

ConsumeFilter = Callable[[str], bool]
"""Whether messages of this queue may be taken now. Asked often, so it must be quick."""

_SOON_SECONDS = 0.02
"""While a filter that opens within an image's time is closed: a BRPOP that the messages behind it
cannot wake ends this soon, so that they are taken soon after it has opened."""

_LATER_SECONDS = 0.2
"""The same for filters that open at an operator's wish or when a model has been loaded."""


def when_leaving(act: Callable[[], None]) -> None:
    """Do this once, when the process is first told to end.

    It is done in the signal's handler, in the middle of whatever the main thread does, and a second
    signal may come in the middle of it: it must wait for nothing, nor for a lock that others hold
    for long.
    """
    told = False

    @signals.worker_shutting_down.connect(weak=False)
    def leaving(**_: Any) -> None:
        nonlocal told
        if not told:
            told = True
            act()


class ConsumeFilters:
    """What must hold for a queue before this process's consumer takes from it."""

    def __init__(self) -> None:
        self._filters: list[tuple[ConsumeFilter, float]] = []
        self._requested: list[str] = []

    def add(self, consumes: ConsumeFilter, *, opens_soon: bool = False) -> None:
        self._filters.append((consumes, _SOON_SECONDS if opens_soon else _LATER_SECONDS))

    def attach(self, app: Celery) -> None:
        """Govern what this process's consumer takes. Call before it starts, after all filters."""
        filters = self
        pace = _Pace()

        class FilteredOrder(InteractiveFirst):
            """`InteractiveFirst` without the queues whose filters are closed."""

            @classmethod
            def __json__(cls) -> str:
                """For those who ask a worker for its settings, as Flower does."""
                return cls.__name__

            def consume(self, n: int) -> list[str]:
                chosen = super().consume(n)
                open_ones, pause = filters._let_through(chosen)
                pace.choose(pause)
                # With no key at all kombu would not ask again before something else woke it.
                return open_ones or [broker.NOTHING]

        # kombu takes a class here as well as its name.
        app.conf.broker_transport_options["queue_order_strategy"] = FilteredOrder

        @signals.worker_ready.connect(weak=False)
        @signals.task_received.connect(weak=False)
        def at_hand(sender: Any, **_: Any) -> None:
            pace.follow(sender.task_consumer.channel)
            # What was just received may have closed a filter, and the next BRPOP takes its time
            # before it asks for its queues.
            pace.choose(filters._let_through(filters._requested)[1])

    def lasting(self, queues: Sequence[str]) -> list[str]:
        """Those that are open but for what is in flight: a filter that opens soon may be wrong."""
        return [
            queue
            for queue in queues
            if all(consumes(queue) for consumes, pause in self._filters if pause != _SOON_SECONDS)
        ]

    def _let_through(self, queues: list[str]) -> tuple[list[str], float | None]:
        """The queues to name, and how soon to look again; None: as kombu does."""
        self._requested = queues
        pause: float | None = None
        for consumes, seconds in self._filters:
            left = [queue for queue in queues if consumes(queue)]
            if len(left) < len(queues):
                pause = seconds if pause is None else min(pause, seconds)
                queues = left
        return queues, pause


class _Pace:
    """How long a BRPOP of the consumer's channel may block, in seconds."""

    def __init__(self) -> None:
        self._channel: Any = None
        self._usual = 0.0

    def follow(self, channel: Any) -> None:
        """A connection that was lost is replaced, and its channel with it."""
        if channel is not self._channel:
            self._channel = channel
            self._usual = channel.brpop_timeout

    def choose(self, pause: float | None) -> None:
        """For the next BRPOP, or, when it is just being sent, for the one after it."""
        if self._channel is not None:
            self._channel.brpop_timeout = self._usual if pause is None else pause


# The worker takes no message from its bulk queues while all bulk slots are taken.


class BulkSlots:
    """The bulk jobs in flight, from the receipt of their messages to their end."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._taken: set[str] = set()
        self._lock = threading.Lock()

    @property
    def is_open(self) -> bool:
        return len(self._taken) < self._limit

    def take(self, task_id: str) -> None:
        with self._lock:
            self._taken.add(task_id)

    def free(self, task_id: str) -> None:
        """A task has ended; nothing happens if it held no slot."""
        with self._lock:
            self._taken.discard(task_id)

    def attach(self, filters: ConsumeFilters) -> None:
        """Govern what this process's consumer takes from its bulk queues."""
        filters.add(lambda queue: self.is_open or not is_bulk(queue), opens_soon=True)

        @signals.task_received.connect(weak=False)
        def received(request: Any, **_: Any) -> None:
            if is_bulk(str(request.delivery_info.get("routing_key", ""))):
                self.take(request.id)

        @signals.task_postrun.connect(weak=False)
        def ended(task_id: str, **_: Any) -> None:
            self.free(task_id)

        @signals.task_revoked.connect(weak=False)
        def never_began(request: Any, **_: Any) -> None:
            self.free(request.id)


def bulk_limit(threads: int, rows: int) -> int:
    """Threads that bulk jobs may hold of a worker's `threads`.

    What is left is enough to fill every row of the engine with interactive jobs and to have one
    more at hand; of few threads, half are left.
    """
    return max(1, threads - min(rows + 1, threads // 2))


def is_bulk(queue: str) -> bool:
    return queue.endswith(f".{broker.BULK}")


# Whatever the cause, a new process starts clean. A Redis that is away, a drain and a model that
# is not loaded are no such cause.

log = get_logger(__name__)

EXIT_STALLED = 70
"""EX_SOFTWARE of sysexits.h: whoever keeps the process starts it again."""

_CHECKS = 10
"""Within the time that it may be quiet."""

_SHOWN_SECONDS = 5.0
"""Between the word of it, to the worker registry and to probes, and the end."""


class ConsumerWatch(BackgroundLoop):
    """Checks on a thread of its own: the consumer's may be what hangs."""

    def __init__(
        self,
        client: "redis.Redis",
        filters: ConsumeFilters,
        queues: Sequence[str],
        idle: Callable[[], bool],
        limit: float,
    ) -> None:
        """`limit`: seconds that work may wait for an idle consumer. `idle`: it holds nothing."""
        super().__init__("consumer-watch", limit / _CHECKS, waits_first=True, join=0)
        self._redis = client
        self._filters = filters
        self._queues = queues
        self._idle = idle
        self._limit = limit
        self._quiet_since: float | None = None
        self._changed: Callable[[], None] = lambda: None
        self.stalled = False

    def attach(self, changed: Callable[[], None]) -> None:
        """Check from when the consumer is ready until it must end; `changed` reports the stall."""
        self._changed = changed

        @signals.task_received.connect(weak=False)
        def took(**_: Any) -> None:
            self._quiet_since = None

        @signals.worker_ready.connect(weak=False)
        def ready(**_: Any) -> None:
            self.start()  # again after each lost connection

        when_leaving(self.close)

    def step(self) -> float | None:
        """End the process if work has waited too long for an idle consumer."""
        try:
            self._check()
        except (redis.RedisError, OSError):
            self._quiet_since = None
        if not self.stalled:
            return self._interval
        log.error("consumer_stalled", seconds=self._limit)
        self._changed()
        self.pause(_SHOWN_SECONDS)
        # It holds nothing, and an orderly way out may hang on what hangs already.
        os._exit(EXIT_STALLED)

    def _check(self) -> None:
        if not self._idle() or not self._work_waits():
            self._quiet_since = None
            return
        now = time.monotonic()
        since = self._quiet_since
        if since is None:
            self._quiet_since = now
        elif now - since >= self._limit:
            self.stalled = True

    def _work_waits(self) -> bool:
        queues = self._filters.lasting(self._queues)
        with self._redis.pipeline(transaction=False) as pipeline:
            for queue in queues:
                pipeline.llen(queue)
            return any(pipeline.execute()) if queues else False
