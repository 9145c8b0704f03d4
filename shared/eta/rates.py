"""How long one image takes, learnt from finished attempts, per model, size, steps and device.

The time an image spends in a row of the batch is not on record: the run of a job includes its wait
for a row, and its GPU-seconds are a share of the batch. But one of two always tells it: where the
batch was full, GPU-seconds × rows is that time; where it was not, nobody waited and the run itself
is. The smaller of both is an upper bound that is met in either case.
"""

import statistics
from collections import OrderedDict, deque
from collections.abc import Iterable
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
    attempts: int


class Pace(BaseModel):
    """Seconds per pixel and step of a model on a device, over all that was asked of it."""

    model_config = ConfigDict(frozen=True)

    model: str
    device: str
    seconds: float
    attempts: int


_Kind = tuple[str, str, int, int, int, bool]


class RateBook:
    """Recent attempts, as rates."""

    def __init__(self) -> None:
        self._kinds: OrderedDict[_Kind, deque[float]] = OrderedDict()
        self._paces: dict[tuple[str, str], deque[float]] = {}

    def learn(self, attempts: Iterable[Finished]) -> None:
        """Take attempts into account, in the order in which they ended."""
        for attempt in attempts:
            work, seconds = attempt.work, attempt.row_seconds
            kind = (
                *(work.model, attempt.device, work.width, work.height),
                *(work.steps, work.guided),
            )
            known = self._kinds.setdefault(kind, deque(maxlen=_WINDOW))
            known.append(seconds)
            self._kinds.move_to_end(kind)
            pace = self._paces.setdefault((work.model, attempt.device), deque(maxlen=_WINDOW))
            pace.append(seconds / work.cost)
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
                seconds=statistics.median(known),
                attempts=len(known),
            )
            for (model, device, width, height, steps, guided), known in self._kinds.items()
        )

    def paces(self) -> tuple[Pace, ...]:
        """One for each model and device."""
        return tuple(
            Pace(model=model, device=device, seconds=statistics.median(known), attempts=len(known))
            for (model, device), known in self._paces.items()
        )
