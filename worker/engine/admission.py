"""Which rows take part in the next tick: interactive before bulk, sizes in fair turns.

The rule in one sentence: among the shapes that have an image of the best waiting lane, the one
that has used the device least goes next, with its first rows in the order (lane, arrival).
Time that a shape could not have used, because it had nobody waiting or only bulk images behind
interactive ones, is not owed to it: it goes on from where the others are.
A bulk row that is not among them waits, whatever step it is at; its state needs no device time.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

from worker.engine.backend import Shape
from worker.engine.interface import Lane

_PRIORITY: dict[Lane, int] = {"interactive": 0, "bulk": 1}


class Entry(Protocol):
    """An image that is waiting or in flight."""

    lane: Lane
    arrival: int
    """Order of submission."""
    shape: Shape

    @property
    def started(self) -> bool:
        """Whether it holds a row state already."""


E = TypeVar("E", bound=Entry)


def _order(entry: Entry) -> tuple[int, int]:
    return (_PRIORITY[entry.lane], entry.arrival)


@dataclass(frozen=True)
class Batch(Generic[E]):
    """The rows of one tick."""

    shape: Shape
    entries: tuple[E, ...]


class Admission(Generic[E]):
    """The images of the engine, and whose turn it is. Not thread-safe: the engine's thread only."""

    def __init__(self, *, exclusive: bool = False) -> None:
        self._groups: dict[Shape, list[E]] = {}
        self._used: dict[Shape, float] = {}
        """Device seconds of each shape, from a common start: who has least goes next."""
        self._level = 0.0
        """What the shape chosen last had used by then: where one that comes into play begins."""
        self._in_play: frozenset[Shape] = frozenset()
        self._last: dict[Shape, frozenset[int]] = {}
        self._exclusive = exclusive
        self.pauses = 0

    def __len__(self) -> int:
        return sum(len(group) for group in self._groups.values())

    def __iter__(self) -> Iterator[E]:
        for group in self._groups.values():
            yield from group

    def add(self, entry: E) -> None:
        """Let an image in."""
        group = self._groups.get(entry.shape)
        if group is None:
            group = self._groups[entry.shape] = []
            self._used[entry.shape] = 0.0
        group.append(entry)
        group.sort(key=_order)

    def remove(self, entry: E) -> None:
        """Let an image go: finished, canceled or failed."""
        group = self._groups[entry.shape]
        group.remove(entry)
        if not group:
            del self._groups[entry.shape], self._used[entry.shape]
            self._in_play -= {entry.shape}
            self._last.pop(entry.shape, None)

    def members(self, shape: Shape) -> tuple[E, ...]:
        """All images of a shape."""
        return tuple(self._groups.get(shape, ()))

    def choose(self) -> Batch[E] | None:
        """The rows of the next tick, or None if there is nobody."""
        if not self._groups:
            return None
        if self._exclusive:
            started = next((entry for entry in self if entry.started), None)
            if started is not None:
                return Batch(started.shape, (started,))
        best = min(_PRIORITY[group[0].lane] for group in self._groups.values())
        turns = [shape for shape, group in self._groups.items() if _PRIORITY[group[0].lane] == best]
        for newcomer in frozenset(turns) - self._in_play:
            self._used[newcomer] = max(self._used[newcomer], self._level)
        self._in_play = frozenset(turns)
        shape = min(turns, key=lambda candidate: self._used[candidate])
        self._level = self._used[shape]
        entries = tuple(self._groups[shape][: shape.rows])
        self._count_pauses(shape, entries)
        return Batch(shape, entries)

    def charge(self, shape: Shape, seconds: float) -> None:
        """Record that a tick of this shape took so long."""
        if shape in self._used:
            self._used[shape] += seconds

    def _count_pauses(self, shape: Shape, entries: tuple[E, ...]) -> None:
        chosen = frozenset(entry.arrival for entry in entries)
        present = {entry.arrival for entry in self._groups[shape]}
        self.pauses += len((self._last.get(shape, frozenset()) - chosen) & present)
        self._last[shape] = chosen
