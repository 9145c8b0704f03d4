"""Whose bulk job is next: each key gets its share of the work, then its batches take turns.

Start-time fair queueing (Goyal, Vin, Cheng 1996) over API keys: a key's clock advances by the
cost of what it was given, and the key whose clock is furthest behind is next. With jobs of equal
cost that is a plain round.
"""

from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from uuid import UUID


@dataclass(eq=False)
class Source:
    """A batch's jobs of one model, as far as they were read from the ledger."""

    batch_id: UUID
    key: str
    priority: int
    position: UUID | None = None
    """The last job that was read; those behind it were fed or are waiting here."""
    is_exhausted: bool = False
    """Nothing lies beyond the position."""
    waiting: deque[tuple[UUID, int]] = field(default_factory=deque)
    """(job, cost) in the order of feeding."""
    last_turn: int = 0


class FairTurns:
    """The batches that want to be fed with jobs of one model."""

    def __init__(self) -> None:
        self._sources: dict[UUID, Source] = {}
        self._by_key: dict[str, list[Source]] = {}
        self._clocks: dict[str, float] = {}
        self._turn = 0

    def update(self, sources: Iterable[Source]) -> None:
        """Take over which batches there are; those known keep their place."""
        wanted = {source.batch_id: source for source in sources}
        for batch_id in self._sources.keys() - wanted.keys():
            del self._sources[batch_id]
        for batch_id, source in wanted.items():
            known = self._sources.setdefault(batch_id, source)
            known.priority = source.priority
        self._by_key = {}
        for source in self._sources.values():
            self._by_key.setdefault(source.key, []).append(source)
        self._clocks = {key: at for key, at in self._clocks.items() if key in self._by_key}
        # Who comes new starts even with those who are there: no credit for having been away.
        start = min(self._clocks.values(), default=0.0)
        for key in self._by_key.keys() - self._clocks.keys():
            self._clocks[key] = start

    def sources(self) -> list[Source]:
        """Every batch there is."""
        return list(self._sources.values())

    def next_source(self, load: Callable[[Source], None]) -> Source | None:
        """The batch whose turn it is; None when nothing waits. `load` may fill one that is empty.

        The key furthest behind; of its batches those of the highest priority; of these the one
        whose last turn is longest ago.
        """
        idle: list[str] = []
        for key in sorted(self._by_key, key=lambda key: (self._clocks[key], key)):
            for source in sorted(self._by_key[key], key=lambda s: (-s.priority, s.last_turn)):
                if not source.waiting:
                    load(source)
                if source.waiting:
                    self._let_catch_up(idle, self._clocks[key])
                    return source
            idle.append(key)
        return None

    def take(self, source: Source) -> UUID:
        """Its next job; its key has had its turn."""
        job, cost = source.waiting.popleft()
        self._clocks[source.key] += max(cost, 1)
        self._turn += 1
        source.last_turn = self._turn
        return job

    def _let_catch_up(self, idle: list[str], clock: float) -> None:
        """A key with nothing to feed saves no credit for later."""
        for key in idle:
            self._clocks[key] = max(self._clocks[key], clock)
