"""In which order a worker looks at its queues: interactive always first, models take turns.

kombu keeps a consumer's queues in a set, so its own `priority` strategy has no order to keep; and
sorted by name, bulk would come first.
"""

from collections.abc import Iterable

from shared.queue import names


class InteractiveFirst:
    """A kombu queue cycle (see `kombu.utils.scheduling`), named in the broker's settings."""

    def __init__(self, it: list[str] | None = None) -> None:
        self.items: list[str] = []
        self.update(it or ())

    def update(self, it: Iterable[str]) -> None:
        """Take a new set of queues; those known keep their turn."""
        queues = set(it)
        kept = [queue for queue in self.items if queue in queues]
        self.items = kept + sorted(queues.difference(kept))
        self._sort()

    def consume(self, n: int) -> list[str]:
        """The first n queues to look at; BRPOP takes from the first that has a message."""
        return self.items[:n]

    def rotate(self, last_used: str) -> None:
        """A queue that was served goes behind the others of its lane."""
        if last_used in self.items:
            self.items.remove(last_used)
            self.items.append(last_used)
            self._sort()

    def _sort(self) -> None:
        # Stable: within a lane the order is that of turns.
        self.items.sort(key=lambda queue: not queue.endswith(f".{names.INTERACTIVE}"))
