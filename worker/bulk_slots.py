"""How many of a worker's threads bulk jobs may hold, so that interactive ones never wait for one.

The worker takes no message from its bulk queues while all bulk slots are taken. It does so where
kombu chooses the queues of its next BRPOP, so nothing is declared, cancelled or sent for it; and
it decides in the thread that reads messages, before the next one is asked for.
"""

import threading
from collections.abc import Iterable
from typing import Any, Protocol

from celery import Celery, signals

from shared.queue import names
from shared.queue.order import InteractiveFirst

_LOOK_AGAIN_SECONDS = 0.02
"""While all slots are taken, a BRPOP that cannot be woken by a bulk message ends this soon, so
that a slot that was freed meanwhile is filled."""


class _Request(Protocol):
    id: str
    delivery_info: dict[str, Any]


class BulkSlots:
    """The bulk jobs in a worker's hands, from the receipt of their messages to their end."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._taken: set[str] = set()
        self._lock = threading.Lock()

    @property
    def is_open(self) -> bool:
        """Whether another bulk job may be taken."""
        return len(self._taken) < self._limit

    def take(self, task_id: str) -> None:
        """A bulk message was received."""
        with self._lock:
            self._taken.add(task_id)

    def free(self, task_id: str) -> None:
        """A task has ended; nothing happens if it held no slot."""
        with self._lock:
            self._taken.discard(task_id)

    def attach(self, app: Celery) -> None:
        """Govern what this process's consumer takes from its bulk queues. Call before it starts."""
        slots = self
        pace = _Pace()

        class WithinSlots(InteractiveFirst):
            """`InteractiveFirst` without the bulk queues while no slot is free."""

            def consume(self, n: int) -> list[str]:
                chosen = super().consume(n)
                pace.choose(slots.is_open)
                return chosen if slots.is_open else list(_without_bulk(chosen))

        # kombu takes a class here as well as its name.
        app.conf.broker_transport_options["queue_order_strategy"] = WithinSlots

        @signals.task_received.connect(weak=False)
        def received(sender: Any, request: _Request, **_: Any) -> None:
            if is_bulk(str(request.delivery_info.get("routing_key", ""))):
                slots.take(request.id)
            pace.follow(sender.task_consumer.channel)
            pace.choose(slots.is_open)

        @signals.task_postrun.connect(weak=False)
        def ended(task_id: str, **_: Any) -> None:
            slots.free(task_id)


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

    def choose(self, is_open: bool) -> None:
        """For the next BRPOP, or, when it is just being sent, for the one after it."""
        if self._channel is not None:
            self._channel.brpop_timeout = self._usual if is_open else _LOOK_AGAIN_SECONDS


def bulk_limit(threads: int, rows: int) -> int:
    """Threads that bulk jobs may hold of a worker's `threads`.

    What is left is enough to fill every row of the engine with interactive jobs and to have one
    more at hand; of few threads, half are left.
    """
    return max(1, threads - min(rows + 1, threads // 2))


def is_bulk(queue: str) -> bool:
    """Whether this is the queue of a bulk lane."""
    return queue.endswith(f".{names.BULK}")


def _without_bulk(queues: Iterable[str]) -> Iterable[str]:
    return (queue for queue in queues if not is_bulk(queue))
