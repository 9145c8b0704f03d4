"""Which rows take part in the next tick: interactive before bulk, sizes in fair turns.

The rule in one sentence: among the shapes that have an image of the best waiting queue class, the
one that has used the device least goes next, with its first rows in the order (queue class,
arrival). Time that a shape could not have used, because it had nobody waiting or only bulk images
behind interactive ones, is not owed to it: it continues from where the others are.
A bulk row that is not among them waits, whatever step it is at; its state needs no device time.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Generic, Protocol, TypeVar

from worker.engine.backend import Shape
from worker.engine.interface import QueueClass

_PRIORITY: dict[QueueClass, int] = {"interactive": 0, "bulk": 1}


class Entry(Protocol):
    """An image that is waiting or in flight."""

    queue_class: QueueClass
    arrival: int
    """Order of submission."""
    shape: Shape

    @property
    def started(self) -> bool:
        """Whether it holds a row state already."""


E = TypeVar("E", bound=Entry)


def _order(entry: Entry) -> tuple[int, int]:
    return (_PRIORITY[entry.queue_class], entry.arrival)


@dataclass(frozen=True)
class Batch(Generic[E]):
    """The rows of one tick."""

    shape: Shape
    entries: tuple[E, ...]


class BatchComposer(Generic[E]):
    """The images of the engine, and whose turn it is. Not thread-safe: the engine's thread only."""

    def __init__(
        self,
        *,
        exclusive: bool = False,
        most: Callable[[Shape], int] | None = None,
        variant_per_text: bool = False,
    ) -> None:
        """
        Args:
            most: how many rows share a tick; by default the shape's size.
            variant_per_text: whether each text may have a variant of its own.
        """
        self._variant_per_text = variant_per_text
        self._most = most or (lambda shape: shape.batch_size)
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
        key = self._fairness_key(entry.shape)
        group = self._groups.get(key)
        if group is None:
            group = self._groups[key] = []
            self._used[key] = 0.0
        group.append(entry)
        group.sort(key=_order)

    def remove(self, entry: E) -> None:
        """Let an image go: finished, canceled or failed."""
        key = self._fairness_key(entry.shape)
        group = self._groups[key]
        group.remove(entry)
        if not group:
            del self._groups[key], self._used[key]
            self._in_play -= {key}
            self._last.pop(key, None)

    def members(self, shape: Shape) -> tuple[E, ...]:
        group = self._groups.get(self._fairness_key(shape), ())
        return tuple(entry for entry in group if entry.shape == shape)

    def choose(self) -> Batch[E] | None:
        """The rows of the next tick, or None if there are no images."""
        if not self._groups:
            return None
        if self._exclusive:
            started = next((entry for entry in self if entry.started), None)
            if started is not None:
                return Batch(started.shape, (started,))
        best = min(_PRIORITY[group[0].queue_class] for group in self._groups.values())
        candidates = [
            shape
            for shape, group in self._groups.items()
            if _PRIORITY[group[0].queue_class] == best
        ]
        for newcomer in frozenset(candidates) - self._in_play:
            self._used[newcomer] = max(self._used[newcomer], self._level)
        self._in_play = frozenset(candidates)
        shape = min(candidates, key=lambda candidate: self._used[candidate])
        self._level = self._used[shape]
        first = self._groups[shape][0].shape
        entries = tuple(self._beside(self._groups[shape])[: self._most(first)])
        self._count_pauses(shape, entries)
        return Batch(first, entries)

    def _fairness_key(self, shape: Shape) -> Shape:
        """Those that take turns with each other. Where each text has its own variant and rows have
        the bits of a row alone, little is shared: images of one size come in their order."""
        alone = self._variant_per_text and shape.batch_size == 1
        return replace(shape, variant=None) if alone else shape

    def _beside(self, group: list[E]) -> list[E]:
        """The first of a group, and those that may share its tick. Bulk rows would slow it down for
        interactive ones of another variant that wait for its end."""
        first = group[0]
        awaited = any(
            entry.shape != first.shape and entry.queue_class == "interactive" for entry in group
        )
        return [
            entry
            for entry in group
            if entry.shape == first.shape
            and not (awaited and entry.queue_class != first.queue_class)
        ]

    def charge(self, shape: Shape, seconds: float) -> None:
        """Record that a tick of this shape took that long."""
        if self._fairness_key(shape) in self._used:
            self._used[self._fairness_key(shape)] += seconds

    def _count_pauses(self, shape: Shape, entries: tuple[E, ...]) -> None:
        chosen = frozenset(entry.arrival for entry in entries)
        present = {entry.arrival for entry in self._groups[shape]}
        self.pauses += len((self._last.get(shape, frozenset()) - chosen) & present)
        self._last[shape] = chosen
