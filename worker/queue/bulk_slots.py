"""How many of a worker's threads bulk jobs may hold, so that interactive ones never wait for one.

The worker takes no message from its bulk queues while all bulk slots are taken: a gate of
`worker.queue.gates`.
"""

import threading
from typing import Any, Protocol

from celery import signals

from shared.queue import names
from worker.queue.gates import QueueGates


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
    return queue.endswith(f".{names.BULK}")
