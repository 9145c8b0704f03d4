"""What workers get done while jobs wait for them: measured, because the device may not be what
holds them up (sizes that take turns, encoding, uploads, a slow ledger)."""

import math
from collections.abc import Mapping
from dataclasses import dataclass

from shared.eta.snapshot import Throughput

_MEMORY_SECONDS = 60.0
"""An interval counts half after two thirds of this: e^(-t / memory)."""
_ENOUGH_SECONDS = 5.0
_ENOUGH_JOBS = 8.0
"""Of evidence before it says anything."""


@dataclass
class _Flow:
    seconds: float = 0.0
    jobs: float = 0.0
    cost: float = 0.0
    rows: int = 0
    waited: bool = False

    def fade(self, share: float) -> None:
        self.seconds *= share
        self.jobs *= share
        self.cost *= share


class ThroughputMeter:
    """Model by model, over the time in which jobs waited."""

    def __init__(self) -> None:
        self._flows: dict[str, _Flow] = {}

    def looked(
        self,
        seconds: float,
        done: Mapping[str, tuple[int, float]],
        waiting: Mapping[str, int],
        rows: Mapping[str, int],
    ) -> None:
        """Take an interval into account; it counts for a model if jobs waited at both of its ends.

        Args:
            seconds: how long it was.
            done: (jobs, cost) that ended in it, by model.
            waiting: jobs that wait now, by model.
            rows: rows of live workers now, by model.
        """
        for model in self._flows.keys() | waiting.keys():
            flow = self._flows.setdefault(model, _Flow())
            waits = bool(waiting.get(model)) and bool(rows.get(model))
            if waits and flow.waited:
                flow.fade(math.exp(-seconds / _MEMORY_SECONDS))
                jobs, cost = done.get(model, (0, 0.0))
                flow.seconds += seconds
                flow.jobs += jobs
                flow.cost += cost
                flow.rows = rows[model]
            flow.waited = waits

    def throughputs(self) -> tuple[Throughput, ...]:
        """Of the models that there is evidence of."""
        return tuple(
            Throughput(model=model, cost_per_second=flow.cost / flow.seconds, rows=flow.rows)
            for model, flow in self._flows.items()
            if flow.seconds >= _ENOUGH_SECONDS and flow.jobs >= _ENOUGH_JOBS
        )
