"""Notice a consumer that holds nothing, takes nothing and has work waiting, and end the process.

Whatever the cause, a new process starts clean. A Redis that is away, a drain and a model that is
not loaded are no such cause.
"""

import os
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

import redis
from celery import signals

from shared.core.logging import get_logger
from worker.core.queues import QueueGates

log = get_logger(__name__)


EXIT_STALLED = 70
"""EX_SOFTWARE of sysexits.h: whoever keeps the process starts it again."""


_LOOKS = 10
"""Within the time that it may be quiet."""


_SHOWN_SECONDS = 5.0
"""Between the word of it, to the roster and to probes, and the end."""


class ConsumerWatch:
    """A thread of its own looks: the consumer's may be what hangs."""

    def __init__(
        self,
        client: "redis.Redis",
        gates: QueueGates,
        queues: Sequence[str],
        idle: Callable[[], bool],
        limit: float,
    ) -> None:
        """`limit`: seconds that work may wait for an idle consumer. `idle`: it holds nothing."""
        self._redis = client
        self._gates = gates
        self._queues = queues
        self._idle = idle
        self._limit = limit
        self._quiet_since: float | None = None
        self._changed: Callable[[], None] = lambda: None
        self.stalled = False
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._run, name="liveness", daemon=True)

    def attach(self, changed: Callable[[], None]) -> None:
        """Look from when the consumer is ready until it is told to end; `changed` says it is."""
        self._changed = changed

        @signals.task_received.connect(weak=False)
        def took(**_: Any) -> None:
            self._quiet_since = None

        @signals.worker_ready.connect(weak=False)
        def ready(**_: Any) -> None:
            # Again after each lost connection.
            if not self._thread.is_alive():
                self._thread.start()

        @signals.worker_shutting_down.connect(weak=False)
        def leaving(**_: Any) -> None:
            self._closing.set()

    def _run(self) -> None:
        while not self._closing.wait(self._limit / _LOOKS):
            try:
                self._look()
            except (redis.RedisError, OSError):
                self._quiet_since = None
            if self.stalled:
                break
        else:
            return
        log.error("consumer_stalled", seconds=self._limit)
        self._changed()
        self._closing.wait(_SHOWN_SECONDS)
        # It holds nothing, and an orderly way out may hang on what hangs already.
        os._exit(EXIT_STALLED)

    def _look(self) -> None:
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
        queues = self._gates.lasting(self._queues)
        with self._redis.pipeline(transaction=False) as pipeline:
            for queue in queues:
                pipeline.llen(queue)
            return any(pipeline.execute()) if queues else False
