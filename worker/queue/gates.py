"""Which queues a worker takes its next message from: those that every gate lets through.

The choice is made where kombu chooses the queues of its next BRPOP, so nothing is declared,
cancelled or sent for it; and it is made in the thread that reads messages, before the next one is
asked for. A message that was on its way when a gate closed still arrives.
"""

from collections.abc import Callable, Sequence
from typing import Any

from celery import Celery, signals

from shared.queue import names
from shared.queue.order import InteractiveFirst

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
                return open_ones or [names.NOTHING]

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
