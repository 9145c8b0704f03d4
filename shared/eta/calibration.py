"""How far estimates are off, measured on the jobs that got one, and what to correct them by.

Split conformal prediction (Vovk, Gammerman, Shafer: Algorithmic Learning in a Random World, 2005;
Lei et al. 2018): whatever the model of the queue gets wrong, the quantiles of (actual ÷ estimated)
over recent jobs, applied to the next estimate, cover it as often as they say, as long as the
next job is like those.
"""

import math
import statistics
from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from pydantic import BaseModel, ConfigDict

from shared.eta.work import Estimate

_WINDOW = 200
"""So many recent jobs; with them the 90th percentile is known to about ± 4 %."""
_PRIOR = (0.7, 0.8, 0.88, 0.94, 1.0, 1.06, 1.13, 1.25, 1.45, 1.8)
"""Ratios assumed beside the first ones that are seen: two jobs say little about a 90th
percentile."""
_EXPERIENCE = 30
"""With so many ratios nothing need be assumed."""


class Factors(BaseModel):
    """What the model's estimates are multiplied by, for one model and case."""

    model_config = ConfigDict(frozen=True)

    model: str
    waits: bool
    p50: float
    p90: float


@dataclass(frozen=True)
class Outcome:
    """A job that had an estimate and succeeded."""

    model: str
    estimate: Estimate
    seconds: float
    """From its submission to its end."""


@dataclass(frozen=True)
class Quality:
    """How good recent estimates were."""

    jobs: int
    covered_p50: float
    """Share of jobs that were done by their p50; 0.5 is perfect."""
    covered_p90: float
    """Share of jobs that were done by their p90; 0.9 is perfect."""
    relative_error: float
    """Median of |actual - p50| ÷ actual."""


class Calibration:
    """The outcomes of recent jobs."""

    def __init__(self) -> None:
        self._ratios: dict[tuple[str, bool], deque[float]] = {}
        self._outcomes: deque[Outcome] = deque(maxlen=_WINDOW)

    def learn(self, outcomes: Sequence[Outcome]) -> None:
        """Take outcomes into account, in the order in which they came about."""
        for outcome in outcomes:
            key = (outcome.model, outcome.estimate.waits)
            ratios = self._ratios.setdefault(key, deque(maxlen=_WINDOW))
            ratios.append(outcome.seconds / max(outcome.estimate.point, 1e-6))
            self._outcomes.append(outcome)

    def factors(self) -> tuple[Factors, ...]:
        """One for each model and case that there is experience with."""
        found = []
        for (model, waits), ratios in self._ratios.items():
            known = ratios if len(ratios) >= _EXPERIENCE else [*ratios, *_PRIOR]
            p50, p90 = quantile(known, 0.5), quantile(known, 0.9)
            found.append(Factors(model=model, waits=waits, p50=p50, p90=p90))
        return tuple(found)

    def quality(self) -> Quality | None:
        """Of the estimates as they were told; None without any."""
        if not self._outcomes:
            return None
        count = len(self._outcomes)
        return Quality(
            jobs=count,
            covered_p50=sum(o.seconds <= o.estimate.p50 for o in self._outcomes) / count,
            covered_p90=sum(o.seconds <= o.estimate.p90 for o in self._outcomes) / count,
            relative_error=statistics.median(
                abs(o.seconds - o.estimate.p50) / max(o.seconds, 1e-6) for o in self._outcomes
            ),
        )


def quantile(values: Iterable[float], share: float) -> float:
    """The value of conformal rank ⌈(n + 1) · share⌉: it covers that share of further draws."""
    ordered = sorted(values)
    rank = math.ceil((len(ordered) + 1) * share)
    return ordered[min(rank, len(ordered)) - 1]


def default_factors(model: str, *, waits: bool) -> Factors:
    """Those of a model without experience."""
    return Factors(model=model, waits=waits, p50=quantile(_PRIOR, 0.5), p90=quantile(_PRIOR, 0.9))
