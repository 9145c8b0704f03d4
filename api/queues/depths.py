"""How much waits and runs, by the ledger; counted at most once a second."""

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from shared.metrics import statements

if TYPE_CHECKING:
    from api.deps import Resources

_FRESH_SECONDS = 1.0
_SHARE = 0.05
"""Of the time spent counting, at most: a million waiting jobs take a while."""
_PATIENCE_SECONDS = 5.0
"""For that million, an operator's look may take longer than a tenant's request."""

Key = tuple[str, str]
"""(model, lane)."""


@dataclass(frozen=True)
class Counted:
    """What one look at the ledger found. Queues without jobs are in none of the two."""

    at: float
    """By this process's clock, when it was asked."""
    waiting: dict[Key, tuple[int, float]] = field(default_factory=dict)
    """(jobs that may run, seconds that the oldest had waited)."""
    running: dict[Key, int] = field(default_factory=dict)

    def models_beyond(self, declared: Sequence[str]) -> list[str]:
        """Models with jobs that are not among the declared, in order."""
        found = {model for model, _ in (*self.waiting, *self.running)}
        return sorted(found - set(declared))

    def age(self, key: Key) -> float | None:
        """Seconds for which the oldest job waits by now; None where none waits."""
        if key not in self.waiting:
            return None
        return self.waiting[key][1] + time.monotonic() - self.at


class QueueDepths:
    """What this process knows of the queues. The ledger is asked: Redis has but a part of them."""

    def __init__(self) -> None:
        self._counted: Counted | None = None
        self._fresh_until = 0.0
        self._lock = asyncio.Lock()

    async def look(self, resources: "Resources") -> Counted:
        """The latest count, a second old at most, or as much older as counting takes long.

        Raises:
            Problem: 503 when the database does not answer in time.
        """
        async with self._lock:
            counted = self._counted
            if counted is None or time.monotonic() >= self._fresh_until:
                counted = self._counted = await _count(resources)
                ended = time.monotonic()
                self._fresh_until = ended + max(_FRESH_SECONDS, (ended - counted.at) / _SHARE)
        return counted


async def _count(resources: "Resources") -> Counted:
    counted = Counted(at=time.monotonic())
    async with resources.transaction(_PATIENCE_SECONDS) as session:
        for model, lane, jobs, age in await session.execute(statements.count_waiting()):
            counted.waiting[model, lane] = jobs, float(age)
        for model, lane, jobs in await session.execute(statements.count_running()):
            counted.running[model, lane] = jobs
    return counted
