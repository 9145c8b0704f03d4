"""What a trial gives: figures, violations, and how long recovery took."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

from tests.chaos.checker import Report


@dataclass
class Result:
    """One row of the table."""

    trial: str
    fault: str
    n: int
    """How often the fault was injected."""
    asked: int
    """How often the long set is meant to inject it."""
    jobs: int = 0
    lost: int = 0
    duplicated: int = 0
    wasted_runs: int = 0
    recovery: dict[str, float] = field(default_factory=dict)
    """Seconds: p50, p99, max, and `of` how many."""
    notes: list[str] = field(default_factory=list)
    violations: list[str] = field(default_factory=list)
    seconds: float = 0.0

    def judge(self, report: Report) -> None:
        """Take over what the checker found."""
        self.jobs += report.jobs
        self.lost += report.lost
        self.duplicated += report.duplicated
        self.wasted_runs += report.wasted_runs
        self.violations += report.violations

    def demand(self, holds: bool, otherwise: str) -> None:
        """A claim of this trial beyond the invariants."""
        if not holds:
            self.violations.append(otherwise)


def quantiles(seconds: Sequence[float]) -> dict[str, float]:
    """p50, p99 and max by the nearest-rank method."""
    if not seconds:
        return {}
    ordered = sorted(seconds)

    def rank(share: float) -> float:
        return round(ordered[max(0, math.ceil(share * len(ordered)) - 1)], 2)

    return {"p50": rank(0.5), "p99": rank(0.99), "max": round(ordered[-1], 2), "of": len(ordered)}
