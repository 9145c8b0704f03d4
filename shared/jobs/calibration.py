"""What estimates learn from: rates per image, throughput, and how far past estimates were off."""

import math
import statistics
from collections import OrderedDict, deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from pydantic import BaseModel, ConfigDict


@dataclass(frozen=True)
class Workload:
    """The images of one job."""

    model: str
    width: int
    height: int
    steps: int
    """Denoising steps that run: fewer than asked for where a `strength` leaves some out."""
    guided: bool
    """Whether a step computes an unconditional half, too."""
    images: int

    @property
    def cost(self) -> float:
        """Pixels × steps of one image."""
        return float(self.width * self.height * self.steps)


def work_of(
    *, model: str, width: int, height: int, guidance_scale: float, images: int, cost: int
) -> Workload:
    """The work of a job with these settings, whose cost counts the steps that run."""
    run = max(1, cost // (width * height * images))
    return Workload(model, width, height, run, guidance_scale > 1, images)


@dataclass(frozen=True)
class DurationEstimate:
    """Seconds until the job is done, counted from the moment of the estimate."""

    point: float
    """What the model of the queue says, before it is corrected by experience."""
    p50: float
    """Half of such jobs are done by then."""
    p90: float
    """Nine of ten such jobs are done by then."""
    waits: bool
    """Whether it has to wait for a free row; the two cases err differently."""

    def as_json(self) -> dict[str, Any]:
        """For `jobs.estimate`."""
        return {
            "point": round(self.point, 3),
            "p50": round(self.p50, 3),
            "p90": round(self.p90, 3),
            "waits": self.waits,
        }

    @classmethod
    def from_json(cls, kept: dict[str, Any]) -> "DurationEstimate":
        """What was kept with a job."""
        return cls(kept["point"], kept["p50"], kept["p90"], kept["waits"])


# The time an image spends in a row of the batch is not on record: the run of a job includes its
# wait for a row, and its GPU-seconds are a share of the batch. But one of two always tells it:
# where the batch was full, GPU-seconds × rows is that time; where it was not, nobody waited and
# the run itself is. The smaller of both is an upper bound that is met in either case.

_RATE_WINDOW = 64
"""Attempts of one kind that are remembered; the median of this many moves with a new driver within
minutes and not with one slow upload."""

_MAX_RATES = 300
"""Rates that are remembered, those last seen."""


@dataclass(frozen=True)
class Finished:
    """An attempt that succeeded."""

    work: Workload
    device: str
    rows: int
    """Of the largest batch that it may have shared."""
    gpu_seconds: float
    """Of its first image."""
    run_seconds: float
    """From the claim to the commit."""

    @property
    def row_seconds(self) -> float:
        """How long one image was in its row, encoded and committed; see the module."""
        return min(self.run_seconds, self.gpu_seconds * self.rows)


class Kind(NamedTuple):
    """What decides how long an image takes on a device: images of one kind take the same time."""

    width: int
    height: int
    steps: int
    guided: bool

    @classmethod
    def of(cls, work: Workload) -> "Kind":
        """Of a job's images."""
        return cls(work.width, work.height, work.steps, work.guided)


class ImageRate(BaseModel):
    """Seconds of an image of one kind in a row of a device; or per pixel and step of any kind."""

    model_config = ConfigDict(frozen=True)

    model: str
    device: str
    kind: Kind | None
    """None: over all kinds, per pixel and step."""
    seconds: float
    gpu_seconds: float
    """What is charged."""
    attempts: int


_Key = tuple[str, str, Kind | None]


class RateBook:
    """Recent attempts, as rates."""

    def __init__(self) -> None:
        self._seen: OrderedDict[_Key, deque[tuple[float, float]]] = OrderedDict()
        """(in a row, charged): seconds of recent attempts."""

    def learn(self, attempts: Iterable[Finished]) -> None:
        """Take attempts into account, in the order in which they ended."""
        for attempt in attempts:
            work = attempt.work
            for kind, unit in ((Kind.of(work), 1.0), (None, work.cost)):
                key = (work.model, attempt.device, kind)
                known = self._seen.setdefault(key, deque(maxlen=_RATE_WINDOW))
                known.append((attempt.row_seconds / unit, attempt.gpu_seconds / unit))
                self._seen.move_to_end(key)
        while len(self._seen) > _MAX_RATES:
            self._seen.popitem(last=False)

    def rates(self) -> tuple[ImageRate, ...]:
        """One for each kind of work on each device, and one for all kinds together."""
        return tuple(
            ImageRate(
                model=model,
                device=device,
                kind=kind,
                seconds=statistics.median(seconds for seconds, _ in known),
                gpu_seconds=statistics.median(charged for _, charged in known),
                attempts=len(known),
            )
            for (model, device, kind), known in self._seen.items()
        )


class Prices:
    """What jobs are charged of the device, by what such jobs were charged lately."""

    def __init__(self, rates: Iterable[ImageRate] = (), *, per_megapixel_step: float) -> None:
        """`per_megapixel_step`: seconds that are assumed for a model without evidence."""
        known: dict[tuple[str, Kind | None], list[ImageRate]] = {}
        for rate in rates:
            if rate.gpu_seconds > 0:
                known.setdefault((rate.model, rate.kind), []).append(rate)
        self._seconds = {
            # Over devices, each with the weight of its attempts.
            key: statistics.fmean(
                [rate.gpu_seconds for rate in fitted], [rate.attempts for rate in fitted]
            )
            for key, fitted in known.items()
        }
        self._default = per_megapixel_step / 1e6

    def gpu_seconds(self, work: Workload) -> float:
        """Of all images of a job: as such images took on the devices there are, else by the model's
        seconds per pixel and step, else by the default.
        """
        one = self._seconds.get((work.model, Kind.of(work)))
        if one is None:
            one = work.cost * self._seconds.get((work.model, None), self._default)
        return one * work.images


# Split conformal prediction (Vovk, Gammerman, Shafer: Algorithmic Learning in a Random World,
# 2005; Lei et al. 2018): whatever the model of the queue gets wrong, the quantiles of (actual ÷
# estimated) over recent jobs, applied to the next estimate, cover it as often as they say, as
# long as the next job is like those.

_WINDOW = 200
"""So many recent jobs; with them the 90th percentile is known to about ± 4 %."""

_PRIOR = (0.7, 0.8, 0.88, 0.94, 1.0, 1.06, 1.13, 1.25, 1.45, 1.8)
"""Ratios assumed alongside the first ones that are seen: two jobs say little about a 90th
percentile."""

_EXPERIENCE = 30
"""With this many ratios nothing need be assumed."""


class Factors(BaseModel):
    """What the model's estimates are multiplied by, for one model and case."""

    model_config = ConfigDict(frozen=True)

    model: str
    waits: bool
    p50: float
    p90: float


@dataclass(frozen=True)
class EstimateOutcome:
    """A job that had an estimate and succeeded."""

    model: str
    estimate: DurationEstimate
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
        self._outcomes: deque[EstimateOutcome] = deque(maxlen=_WINDOW)

    def learn(self, outcomes: Sequence[EstimateOutcome]) -> None:
        """Take outcomes into account, in the order in which they came about."""
        for outcome in outcomes:
            key = (outcome.model, outcome.estimate.waits)
            ratios = self._ratios.setdefault(key, deque(maxlen=_WINDOW))
            ratios.append(outcome.seconds / max(outcome.estimate.point, 1e-6))
            self._outcomes.append(outcome)

    def factors(self) -> tuple[Factors, ...]:
        """One for each model and case that there is experience with."""
        fitted = []
        for (model, waits), ratios in self._ratios.items():
            known = ratios if len(ratios) >= _EXPERIENCE else [*ratios, *_PRIOR]
            p50, p90 = quantile(known, 0.5), quantile(known, 0.9)
            fitted.append(Factors(model=model, waits=waits, p50=p50, p90=p90))
        return tuple(fitted)

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
