"""Which queues a worker takes its next message from, and how many threads bulk jobs may hold."""

import threading
from collections.abc import Callable, Sequence
from typing import Any, Protocol

from celery import Celery, signals

from shared.core import broker
from shared.core.broker import InteractiveFirst

Gate = Callable[[str], bool]
"""Whether messages of this queue may be taken now. Asked often, so it must be quick."""


_SOON_SECONDS = 0.02
"""While a gate that opens within a picture's time is closed: a BRPOP that the messages behind it
cannot wake ends this soon, so that they are taken soon after it has opened."""


_LATER_SECONDS = 0.2
"""The same for gates that open at an operator's wish or when a model has been loaded."""


class QueueGates:
    """The gates of a process's consumer."""

    def __init__(self) -> None:
        self._gates: list[tuple[Gate, float]] = []
        self._asked: list[str] = []

    def add(self, gate: Gate, *, opens_soon: bool = False) -> None:
        """Ask this gate, too."""
        self._gates.append((gate, _SOON_SECONDS if opens_soon else _LATER_SECONDS))

    def attach(self, app: Celery) -> None:
        """Govern what this process's consumer takes. Call before it starts, after all gates."""
        gates = self
        pace = _Pace()

        class ThroughGates(InteractiveFirst):
            """`InteractiveFirst` without the queues whose gates are closed."""

            @classmethod
            def __json__(cls) -> str:
                """For those who ask a worker for its settings, as Flower does."""
                return cls.__name__

            def consume(self, n: int) -> list[str]:
                chosen = super().consume(n)
                open_ones, pause = gates._let_through(chosen)
                pace.choose(pause)
                # With no key at all kombu would not ask again before something else woke it.
                return open_ones or [broker.NOTHING]

        # kombu takes a class here as well as its name.
        app.conf.broker_transport_options["queue_order_strategy"] = ThroughGates

        @signals.worker_ready.connect(weak=False)
        @signals.task_received.connect(weak=False)
        def at_hand(sender: Any, **_: Any) -> None:
            pace.follow(sender.task_consumer.channel)
            # What was just received may have closed a gate, and the next BRPOP takes its time
            # before it asks for its queues.
            pace.choose(gates._let_through(gates._asked)[1])

    def lasting(self, queues: Sequence[str]) -> list[str]:
        """Those that are open but for what is in hand: that gates which open soon may be wrong."""
        return [
            queue
            for queue in queues
            if all(gate(queue) for gate, pause in self._gates if pause != _SOON_SECONDS)
        ]

    def _let_through(self, queues: list[str]) -> tuple[list[str], float | None]:
        """The queues to name, and how soon to look again; None: as kombu does."""
        self._asked = queues
        pause: float | None = None
        for gate, seconds in self._gates:
            left = [queue for queue in queues if gate(queue)]
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


# The worker takes no message from its bulk queues while all bulk slots are taken: a gate of
# `worker.core.queues`.


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

    def attach(self, gates: QueueGates) -> None:
        """Govern what this process's consumer takes from its bulk queues."""
        slots = self
        gates.add(lambda queue: slots.is_open or not is_bulk(queue), opens_soon=True)

        @signals.task_received.connect(weak=False)
        def received(request: _Request, **_: Any) -> None:
            if is_bulk(str(request.delivery_info.get("routing_key", ""))):
                slots.take(request.id)

        @signals.task_postrun.connect(weak=False)
        def ended(task_id: str, **_: Any) -> None:
            slots.free(task_id)

        @signals.task_revoked.connect(weak=False)
        def never_began(request: _Request, **_: Any) -> None:
            slots.free(request.id)


def bulk_limit(threads: int, rows: int) -> int:
    """Threads that bulk jobs may hold of a worker's `threads`.

    What is left is enough to fill every row of the engine with interactive jobs and to have one
    more at hand; of few threads, half are left.
    """
    return max(1, threads - min(rows + 1, threads // 2))


def is_bulk(queue: str) -> bool:
    """Whether this is the queue of a bulk lane."""
    return queue.endswith(f".{broker.BULK}")
