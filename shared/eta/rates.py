"""How long one image takes, learnt from finished attempts, per model, size, steps and device.

The time an image spends in a row of the batch is not on record: the run of a job includes its wait
for a row, and its GPU-seconds are a share of the batch. But one of two always tells it: where the
batch was full, GPU-seconds × rows is that time; where it was not, nobody waited and the run itself
is. The smaller of both is an upper bound that is met in either case.
"""

import statistics
from collections import OrderedDict, deque
from collections.abc import Hashable, Iterable
from dataclasses import dataclass

from pydantic import BaseModel, ConfigDict

from shared.eta.work import Work

_WINDOW = 64
"""Attempts of one kind that are remembered; the median of so many moves with a new driver within
minutes and not with one slow upload."""
_MAX_KINDS = 300
"""Kinds of work that are remembered, those last seen."""


@dataclass(frozen=True)
class Finished:
    """An attempt that succeeded."""

    work: Work
    device: str
    rows: int
    """The batch shape that it ran at."""
    gpu_seconds: float
    """Of its first image."""
    run_seconds: float
    """From the claim to the commit."""

    @property
    def row_seconds(self) -> float:
        """How long one image was in its row, encoded and committed; see the module."""
        return min(self.run_seconds, self.gpu_seconds * self.rows)


class Rate(BaseModel):
    """Seconds of one kind of image in a row of a device."""

    model_config = ConfigDict(frozen=True)

    model: str
    device: str
    width: int
    height: int
    steps: int
    guided: bool
    seconds: float
    gpu_seconds: float = 0.0
    """What such an image is charged; 0: an older release did not say."""
    attempts: int


class Pace(BaseModel):
    """Seconds per pixel and step of a model on a device, over all that was asked of it."""

    model_config = ConfigDict(frozen=True)

    model: str
    device: str
    seconds: float
    gpu_seconds: float = 0.0
    """What is charged for them; 0: an older release did not say."""
    attempts: int


_Kind = tuple[str, str, int, int, int, bool]
_Seen = deque[tuple[float, float]]
"""(in a row, charged): seconds of recent attempts."""


class RateBook:
    """Recent attempts, as rates."""

    def __init__(self) -> None:
        self._kinds: OrderedDict[_Kind, _Seen] = OrderedDict()
        self._paces: dict[tuple[str, str], _Seen] = {}

    def learn(self, attempts: Iterable[Finished]) -> None:
        """Take attempts into account, in the order in which they ended."""
        for attempt in attempts:
            work, seconds = attempt.work, attempt.row_seconds
            kind = (
                *(work.model, attempt.device, work.width, work.height),
                *(work.steps, work.guided),
            )
            known = self._kinds.setdefault(kind, deque(maxlen=_WINDOW))
            known.append((seconds, attempt.gpu_seconds))
            self._kinds.move_to_end(kind)
            pace = self._paces.setdefault((work.model, attempt.device), deque(maxlen=_WINDOW))
            pace.append((seconds / work.cost, attempt.gpu_seconds / work.cost))
        while len(self._kinds) > _MAX_KINDS:
            self._kinds.popitem(last=False)

    def rates(self) -> tuple[Rate, ...]:
        """One for each kind of work."""
        return tuple(
            Rate(
                model=model,
                device=device,
                width=width,
                height=height,
                steps=steps,
                guided=guided,
                **_medians(known),
                attempts=len(known),
            )
            for (model, device, width, height, steps, guided), known in self._kinds.items()
        )

    def paces(self) -> tuple[Pace, ...]:
        """One for each model and device."""
        return tuple(
            Pace(model=model, device=device, **_medians(known), attempts=len(known))
            for (model, device), known in self._paces.items()
        )


def _medians(known: _Seen) -> dict[str, float]:
    in_row, charged = zip(*known, strict=True)
    return {"seconds": statistics.median(in_row), "gpu_seconds": statistics.median(charged)}


class Prices:
    """What jobs are charged of the device, by what such jobs were charged lately."""

    def __init__(
        self, rates: Iterable[Rate] = (), paces: Iterable[Pace] = (), *, per_megapixel_step: float
    ) -> None:
        """`per_megapixel_step`: seconds that are assumed for a model without evidence."""
        kinds, models = _Averages(), _Averages()
        for rate in rates:
            kind = (rate.model, rate.width, rate.height, rate.steps, rate.guided)
            kinds.add(kind, rate.gpu_seconds, rate.attempts)
        for pace in paces:
            models.add(pace.model, pace.gpu_seconds, pace.attempts)
        self._kinds, self._models = kinds.known, models.known
        self._default = per_megapixel_step / 1e6

    def gpu_seconds(self, work: Work) -> float:
        """Of all images of a job: as such images took on the devices there are, else by the model's
        seconds per pixel and step, else by the default.
        """
        kind = (work.model, work.width, work.height, work.steps, work.guided)
        one = self._kinds.get(kind)
        if one is None:
            one = work.cost * self._models.get(work.model, self._default)
        return one * work.images


class _Averages:
    """Over devices, each with the weight of its attempts."""

    def __init__(self) -> None:
        self.known: dict[Hashable, float] = {}
        self._weights: dict[Hashable, int] = {}

    def add(self, key: Hashable, value: float, weight: int) -> None:
        if value <= 0:
            return
        total = self._weights.get(key, 0) + weight
        before = self.known.get(key, 0.0)
        self.known[key] = before + (value - before) * weight / total
        self._weights[key] = total
