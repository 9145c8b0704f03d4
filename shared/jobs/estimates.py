"""When a job will be done: the queue before it, live workers, and past experience."""

import math
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property

from pydantic import BaseModel, ConfigDict

from shared.core.broker import BULK
from shared.core.worker_registry import WorkerHeartbeat
from shared.jobs.calibration import (
    DurationEstimate,
    Factors,
    ImageRate,
    Kind,
    Workload,
    default_factors,
)


class Load(BaseModel):
    """Unfinished work of a model in a queue class. Costs are pixels × steps × images."""

    model_config = ConfigDict(frozen=True, allow_inf_nan=False)

    model: str
    queue_class: str
    queued_jobs: int = 0
    queued_images: float = 0
    queued_cost: float = 0.0
    running_images: int = 0
    running_cost: float = 0.0

    def plus(self, images: int, cost: float) -> "Load":
        """And this, queued."""
        return self.model_copy(
            update={
                "queued_images": self.queued_images + images,
                "queued_cost": self.queued_cost + cost,
            }
        )

    def before(self, position: int) -> "Load":
        """The running work and `position` of the queued jobs, of the usual kind."""
        share = position / self.queued_jobs if self.queued_jobs else 0.0
        return self.model_copy(
            update={
                "queued_jobs": position,
                "queued_images": self.queued_images * share,
                "queued_cost": self.queued_cost * share,
            }
        )


class Throughput(BaseModel):
    """What a model's workers got done lately while jobs waited for them, whatever held them up."""

    model_config = ConfigDict(frozen=True, allow_inf_nan=False)

    model: str
    cost_per_second: float
    rows: int
    """Of all of its live workers together, then."""


class Snapshot(BaseModel):
    """Everything that an estimate needs apart from the job and the live workers."""

    model_config = ConfigDict(frozen=True, allow_inf_nan=False)

    rates: tuple[ImageRate, ...] = ()
    factors: tuple[Factors, ...] = ()
    throughputs: tuple[Throughput, ...] = ()
    loads: tuple[Load, ...] = ()
    ttl_seconds: float = 0.0
    """For how long it stands, from the moment it was made."""

    @cached_property
    def seconds_by_kind(self) -> dict[tuple[str, str, Kind | None], float]:
        """The rates, by (model, device, kind)."""
        return {(rate.model, rate.device, rate.kind): rate.seconds for rate in self.rates}

    def row_seconds(self, work: Workload, device: str) -> float | None:
        """Seconds of one such image in a row of the device; None without evidence."""
        seconds = self.seconds_by_kind.get((work.model, device, Kind.of(work)))
        if seconds is None and (pace := self.pace(work.model, device)) is not None:
            seconds = pace * work.cost
        return seconds

    def pace(self, model: str, device: str) -> float | None:
        """Seconds per pixel and step; None without evidence."""
        return self.seconds_by_kind.get((model, device, None))

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
        available = (f for f in self.factors if f.model == model and f.waits == waits)
        return next(available, None) or default_factors(model, waits=waits)

    def load(self, model: str, queue_class: str) -> Load:
        """What is unfinished; bulk work has the interactive work before it, too."""
        own = [
            load
            for load in self.loads
            if load.model == model and queue_class in (load.queue_class, BULK)
        ]
        return Load(
            model=model,
            queue_class=queue_class,
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

    def observe(
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
class Servers:
    """The rows that can make such an image now."""

    rows: int
    row_seconds: float
    """Of one such image, the average over the rows."""
    cost_per_second: float
    """Pixels × steps × images that all rows together get done in a second."""


Rows = Mapping[str, int]
"""Rows of one model on each device, of all workers together."""


def rows_of(fleet: Iterable[WorkerHeartbeat], model: str) -> Rows:
    """Where the model is warm and taken."""
    available: Counter[str] = Counter()
    for worker in fleet:
        warm = worker.warm(model)
        if warm is not None and worker.device is not None:
            available[worker.device] += warm.batch_size or 1
    return available


def servers(snapshot: Snapshot, rows_there: Rows, work: Workload) -> Servers | None:
    """Those rows that there is evidence of; None if there are none."""
    known = {device: snapshot.row_seconds(work, device) for device in rows_there}
    known_rows = {device: rows_there[device] for device, took in known.items() if took is not None}
    per_second = cost_per_second(snapshot, known_rows, work.model)
    if per_second is None:
        return None
    rows = sum(known_rows.values())
    images_per_second = sum(
        count / max(known[device] or 0.0, 1e-6) for device, count in known_rows.items()
    )
    return Servers(rows, rows / images_per_second, per_second)


def cost_per_second(snapshot: Snapshot, rows_there: Rows, model: str) -> float | None:
    """Pixels × steps × images that all rows together get done in a second; None: not known."""
    measured = snapshot.throughput(model, sum(rows_there.values()))
    if measured:
        return measured
    paces = [(count, snapshot.pace(model, device)) for device, count in rows_there.items()]
    return sum(count / max(pace, 1e-15) for count, pace in paces if pace is not None) or None


def estimate_many(
    snapshot: Snapshot, model: str, per_second: float, cost: float
) -> DurationEstimate:
    """Until a batch of this cost is done, behind everything that waits now."""
    load = snapshot.load(model, BULK)
    waiting = load.queued_cost + load.running_cost / 2
    return _corrected(snapshot, model, (waiting + cost) / per_second, waits=True)


def estimate_queued(
    snapshot: Snapshot, available: Servers, work: Workload, ahead: Load, *, age: float = 0.0
) -> DurationEstimate:
    """Until a job that has not begun is done.

    Args:
        snapshot: what was measured.
        available: the rows that there are.
        work: the job.
        ahead: what goes before it, as of `age` seconds ago.
        age: the time since; what was ahead then has gone on meanwhile.
    """
    rows = available.rows
    others = ahead.running_images + ahead.queued_images
    if others + work.images <= rows:
        wait = 0.0
    elif others < 1:
        wait = (math.ceil(work.images / rows) - 1) * available.row_seconds
    else:
        begun = min(ahead.running_images, rows)
        left = (
            ahead.running_cost * (0.5 * begun + ahead.running_images - begun) / ahead.running_images
            if ahead.running_images
            else 0.0
        )
        own = work.cost * (work.images - 1)
        wait = max(0.0, (ahead.queued_cost + left) / available.cost_per_second - age)
        wait += own / available.cost_per_second
    return _corrected(snapshot, work.model, wait + available.row_seconds, waits=wait > 0)


def estimate_running(
    snapshot: Snapshot,
    available: Servers,
    work: Workload,
    *,
    fraction: float,
    left_of_promise: float,
) -> DurationEstimate:
    """Until a job that a worker holds is done.

    Args:
        snapshot: what was measured.
        available: the rows that there are.
        work: the job.
        fraction: how much of it is done; 0 while it waits for a row of its worker's.
        left_of_promise: seconds that are left of what was estimated at its submission.
    """
    rounds = math.ceil(work.images / available.rows)
    if fraction > 0:
        left = available.row_seconds * rounds * (1 - fraction)
    else:
        left = max(available.row_seconds * rounds, left_of_promise)
    return _corrected(snapshot, work.model, left, waits=False)


def _corrected(snapshot: Snapshot, model: str, point: float, *, waits: bool) -> DurationEstimate:
    factors = snapshot.factors_of(model, waits=waits)
    return DurationEstimate(point, point * factors.p50, point * factors.p90, waits)
