"""When a job will be done: the queue before it, live workers, and past experience."""

import math
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from pydantic import BaseModel, ConfigDict

from shared.core.broker import BULK
from shared.core.worker_registry import WorkerAnnouncement
from shared.jobs.calibration import Estimate, Factors, Pace, Rate, Work, default_factors


class Load(BaseModel):
    """Unfinished work of a model in a lane. Costs are pixels × steps × images."""

    model_config = ConfigDict(frozen=True, allow_inf_nan=False)

    model: str
    lane: str
    queued_jobs: int = 0
    queued_images: int = 0
    queued_cost: float = 0.0
    running_images: int = 0
    running_cost: float = 0.0


class Throughput(BaseModel):
    """What a model's workers got done lately while jobs waited for them, whatever held them up."""

    model_config = ConfigDict(frozen=True, allow_inf_nan=False)

    model: str
    cost_per_second: float
    rows: int
    """Of all of its live workers together, then."""


class Snapshot(BaseModel):
    """Everything that an estimate needs apart from the job and the roster."""

    model_config = ConfigDict(frozen=True, allow_inf_nan=False)

    rates: tuple[Rate, ...] = ()
    paces: tuple[Pace, ...] = ()
    factors: tuple[Factors, ...] = ()
    throughputs: tuple[Throughput, ...] = ()
    loads: tuple[Load, ...] = ()
    ttl_seconds: float = 0.0
    """For how long it stands, from the moment it was made."""

    def row_seconds(self, work: Work, device: str) -> float | None:
        """Seconds of one such image in a row of the device; None without evidence."""
        for rate in self.rates:
            if (rate.model, rate.device, rate.width, rate.height, rate.steps, rate.guided) == (
                *(work.model, device, work.width, work.height, work.steps, work.guided),
            ):
                return rate.seconds
        pace = self.pace(work.model, device)
        return None if pace is None else pace * work.cost

    def pace(self, model: str, device: str) -> float | None:
        """Seconds per pixel and step; None without evidence."""
        return next(
            (pace.seconds for pace in self.paces if (pace.model, pace.device) == (model, device)),
            None,
        )

    def throughput(self, model: str, rows: int) -> float | None:
        """Cost per second, scaled to the rows there are now; None where nothing waited lately."""
        return next(
            (
                seen.cost_per_second * rows / seen.rows
                for seen in self.throughputs
                if seen.model == model and seen.rows
            ),
            None,
        )

    def factors_of(self, model: str, *, waits: bool) -> Factors:
        """By what to correct estimates of this model."""
        found = (f for f in self.factors if f.model == model and f.waits == waits)
        return next(found, None) or default_factors(model, waits=waits)

    def load(self, model: str, lane: str) -> Load:
        """What is unfinished; bulk work has the interactive work before it, too."""
        own = [load for load in self.loads if load.model == model and lane in (load.lane, BULK)]
        return Load(
            model=model,
            lane=lane,
            queued_jobs=sum(load.queued_jobs for load in own),
            queued_images=sum(load.queued_images for load in own),
            queued_cost=sum(load.queued_cost for load in own),
            running_images=sum(load.running_images for load in own),
            running_cost=sum(load.running_cost for load in own),
        )


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


# Images wait for a row, in the order of their jobs; each holds its row for as long as its kind
# takes on that device. Work that is under way is half done on average. What this leaves out
# (sizes that take turns, uploads, jobs to come that go first) is what `calibration` corrects.


@dataclass(frozen=True)
class Ahead:
    """What goes before a job."""

    queued_images: float = 0.0
    queued_cost: float = 0.0
    running_images: float = 0.0
    running_cost: float = 0.0

    @classmethod
    def of_all(cls, load: Load) -> "Ahead":
        """Everything that is unfinished: a job that is submitted now."""
        return cls(load.queued_images, load.queued_cost, load.running_images, load.running_cost)

    @classmethod
    def of_position(cls, load: Load, position: int) -> "Ahead":
        """The running work and so many queued jobs of the usual kind."""
        share = position / load.queued_jobs if load.queued_jobs else 0.0
        return cls(
            load.queued_images * share,
            load.queued_cost * share,
            load.running_images,
            load.running_cost,
        )

    def plus(self, images: float, cost: float) -> "Ahead":
        """And this, queued."""
        return Ahead(
            self.queued_images + images,
            self.queued_cost + cost,
            self.running_images,
            self.running_cost,
        )


@dataclass(frozen=True)
class Servers:
    """The rows that can make such an image now."""

    rows: int
    row_seconds: float
    """Of one such image, the average over the rows."""
    cost_per_second: float
    """Pixels × steps × images that all rows together get done in a second."""


Rows = Mapping[str, int]
"""Rows of one model on each device, of all workers together."""


def rows_of(fleet: Iterable[WorkerAnnouncement], model: str) -> Rows:
    """Where the model is warm and taken."""
    found: Counter[str] = Counter()
    for worker in fleet:
        warm = worker.warm(model)
        if warm is not None and worker.device is not None:
            found[worker.device] += warm.rows or 1
    return found


def servers(snapshot: Snapshot, rows_there: Rows, work: Work) -> Servers | None:
    """Those rows that there is evidence of; None if there are none."""
    rows, images_per_second, cost_per_second = 0, 0.0, 0.0
    for device, count in rows_there.items():
        seconds = snapshot.row_seconds(work, device)
        pace = snapshot.pace(work.model, device)
        if seconds is None or pace is None:
            continue
        rows += count
        images_per_second += count / max(seconds, 1e-6)
        cost_per_second += count / max(pace, 1e-15)
    if rows == 0:
        return None
    measured = snapshot.throughput(work.model, rows)
    return Servers(rows, rows / images_per_second, measured or cost_per_second)


def cost_per_second(snapshot: Snapshot, rows_there: Rows, model: str) -> float | None:
    """Pixels × steps × images of the usual kind that all rows get done in a second."""
    total = 0.0
    for device, count in rows_there.items():
        pace = snapshot.pace(model, device)
        if pace is not None:
            total += count / max(pace, 1e-15)
    measured = snapshot.throughput(model, sum(rows_there.values()))
    return measured or total or None


def estimate_many(snapshot: Snapshot, model: str, per_second: float, cost: float) -> Estimate:
    """Until a batch of this cost is done, behind everything that waits now."""
    load = snapshot.load(model, BULK)
    waiting = load.queued_cost + load.running_cost / 2
    return _corrected(snapshot, model, (waiting + cost) / per_second, waits=True)


def estimate_queued(
    snapshot: Snapshot, found: Servers, work: Work, ahead: Ahead, *, age: float = 0.0
) -> Estimate:
    """Until a job that has not begun is done.

    Args:
        snapshot: what was measured.
        found: the rows that there are.
        work: the job.
        ahead: what goes before it, as of `age` seconds ago.
        age: the time since; what was ahead then has gone on meanwhile.
    """
    rows = found.rows
    others = ahead.running_images + ahead.queued_images
    if others + work.images <= rows:
        wait = 0.0
    elif others < 1:
        wait = (math.ceil(work.images / rows) - 1) * found.row_seconds
    else:
        begun = min(ahead.running_images, rows)
        left = (
            ahead.running_cost * (0.5 * begun + ahead.running_images - begun) / ahead.running_images
            if ahead.running_images
            else 0.0
        )
        own = work.cost * (work.images - 1)
        wait = max(0.0, (ahead.queued_cost + left) / found.cost_per_second - age)
        wait += own / found.cost_per_second
    return _corrected(snapshot, work.model, wait + found.row_seconds, waits=wait > 0)


def estimate_running(
    snapshot: Snapshot, found: Servers, work: Work, *, fraction: float, left_of_promise: float
) -> Estimate:
    """Until a job that a worker holds is done.

    Args:
        snapshot: what was measured.
        found: the rows that there are.
        work: the job.
        fraction: how much of it is done; 0 while it waits for a row of its worker's.
        left_of_promise: seconds that are left of what was estimated at its submission.
    """
    rounds = math.ceil(work.images / found.rows)
    if fraction > 0:
        left = found.row_seconds * rounds * (1 - fraction)
    else:
        left = max(found.row_seconds * rounds, left_of_promise)
    return _corrected(snapshot, work.model, left, waits=False)


def _corrected(snapshot: Snapshot, model: str, point: float, *, waits: bool) -> Estimate:
    factors = snapshot.factors_of(model, waits=waits)
    return Estimate(point, point * factors.p50, point * factors.p90, waits)
