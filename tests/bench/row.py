"""What a benchmark yields: one row, with the spread of its repeats."""

import statistics
from collections.abc import Sequence
from typing import Literal, TypedDict


class Row(TypedDict):
    """One measured number. `value` is the median of the repeats unless the name says otherwise."""

    name: str
    value: float
    unit: str
    goal: str
    holds: bool
    baseline: str
    median: float
    min: float
    max: float


def make_row(
    name: str,
    repeats: Sequence[float],
    *,
    unit: str,
    goal: float,
    better: Literal["higher", "lower"],
    baseline: str,
) -> Row:
    """A row whose value is the median of `repeats`, judged against `goal`."""
    median = statistics.median(repeats)
    holds = median >= goal if better == "higher" else median <= goal
    sign = "≥" if better == "higher" else "≤"
    return {
        "name": name,
        "value": round(median, 4),
        "unit": unit,
        "goal": f"{sign} {goal:g}",
        "holds": holds,
        "baseline": baseline,
        "median": round(median, 4),
        "min": round(min(repeats), 4),
        "max": round(max(repeats), 4),
    }


def percentile(values: Sequence[float], share: float) -> float:
    """The nearest-rank percentile; `share` in 0 … 1."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]
