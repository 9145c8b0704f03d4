"""When jobs will be done, from the dispatcher's snapshot in Redis, read at most once a second."""

import asyncio
import time
from collections import deque
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

from pydantic import ValidationError
from redis.asyncio import Redis

from api.core.live_workers import LiveWorkers
from api.core.publisher import CircuitBreaker, RedisDown
from api.jobs.planning import Plan
from api.jobs.schemas import Eta
from shared.core.broker import BULK, ETA, INTERACTIVE, unreadable
from shared.core.worker_registry import WorkerHeartbeat
from shared.jobs.calibration import DurationEstimate, Prices, Workload, work_of
from shared.jobs.estimates import (
    Rows,
    Snapshot,
    cost_per_second,
    estimate_many,
    estimate_queued,
    estimate_running,
    rows_of,
    servers,
)
from shared.jobs.models import Job
from shared.jobs.queries.transitions import EXACT_POSITIONS
from shared.jobs.state import JobState

_FRESH_SECONDS = 1.0
_REMEMBERED = 10_000
"""Jobs of a model: while nobody measures, nobody says what can be forgotten."""


@dataclass(frozen=True)
class _Measured:
    """A snapshot, and when it was made by this process's clock."""

    snapshot: Snapshot
    at: float


@dataclass
class Acceptances:
    """The jobs of one model that this process has accepted lately, with their sums.

    Sums, because every submission asks: adding up each time would take longer the busier it is.
    """

    images: int = 0
    cost: float = 0.0
    _jobs: deque[tuple[float, int, float]] = field(default_factory=deque)
    """(when, images, cost), the oldest first."""

    def add(self, at: float, images: int, cost: float) -> None:
        """A job was accepted at this moment."""
        self._jobs.append((at, images, cost))
        self.images += images
        self.cost += cost
        if len(self._jobs) > _REMEMBERED:
            self._drop()

    def drop_until(self, at: float) -> None:
        """What was accepted by then, a snapshot has counted."""
        while self._jobs and self._jobs[0][0] <= at:
            self._drop()

    def _drop(self) -> None:
        _, images, cost = self._jobs.popleft()
        self.images -= images
        self.cost -= cost


class Estimates:
    """What this process knows about the queue; answers None where there is no evidence.

    Between two snapshots what this process accepts is added; other processes' share is not.
    """

    def __init__(
        self,
        redis: Redis,
        circuit_breaker: CircuitBreaker,
        workers: LiveWorkers,
        per_megapixel_step: float,
    ) -> None:
        """`per_megapixel_step`: device seconds that are assumed for a model without evidence."""
        self._per_megapixel_step = per_megapixel_step
        self._prices = Prices(per_megapixel_step=per_megapixel_step)
        self._redis = redis
        self._circuit_breaker = circuit_breaker
        self._live_workers = workers
        self._measured: _Measured | None = None
        self._fresh_until = 0.0
        self._lock = asyncio.Lock()
        self._fleet: tuple[WorkerHeartbeat, ...] | None = None
        self._rows: dict[str, Rows] = {}
        self._accepted: dict[str, Acceptances] = {}

    async def of_new(
        self, work: Workload, queue_class: str = INTERACTIVE
    ) -> DurationEstimate | None:
        """Of a job that would be submitted now."""
        measured = await self._poll()
        if measured is None:
            return None
        available = servers(measured.snapshot, await self._rows_of(work.model), work)
        if available is None:
            return None
        ahead = measured.snapshot.load(work.model, queue_class)
        accepted = self._accepted.get(work.model)
        if accepted is not None:
            accepted.drop_until(measured.at)
            ahead = ahead.plus(accepted.images, accepted.cost)
        age = time.monotonic() - measured.at
        return estimate_queued(measured.snapshot, available, work, ahead, age=age)

    async def of_batch(self, models: Collection[str], cost: float) -> DurationEstimate | None:
        """Of a batch of these models, its cost spread evenly over them; the slowest counts."""
        measured = await self._poll()
        if measured is None:
            return None
        available = []
        for model in models:
            rows = await self._rows_of(model)
            speed = cost_per_second(measured.snapshot, rows, model)
            if speed is None:
                return None
            available.append(estimate_many(measured.snapshot, model, speed, cost / len(models)))
        return max(available, key=lambda estimate: estimate.p50, default=None)

    async def prices(self) -> Prices:
        """What jobs are charged of the device, by the latest evidence that there was."""
        await self._poll()
        return self._prices

    def accepted(self, work: Workload) -> None:
        """A job was accepted; the next snapshot will have it."""
        known = self._accepted.setdefault(work.model, Acceptances())
        known.add(time.monotonic(), work.images, work.cost * work.images)

    async def of_job(
        self, job: Job, *, position: int | None, fraction: float | None
    ) -> DurationEstimate | None:
        """Of a job as it is now.

        Args:
            job: its row.
            position: queued jobs before it; None unless it is queued.
            fraction: how much of it is done; None unless it runs.
        """
        measured = await self._poll()
        if measured is None:
            return None
        snapshot, work = measured.snapshot, work_of_job(job)
        available = servers(snapshot, await self._rows_of(job.model), work)
        if available is None:
            return None
        if job.state == JobState.RUNNING:
            return estimate_running(
                snapshot,
                available,
                work,
                fraction=fraction or 0.0,
                left_of_promise=_promise_left(job),
            )
        if job.state != JobState.QUEUED:
            return None
        queue_class = BULK if job.queue_class == BULK else INTERACTIVE
        ahead = snapshot.load(job.model, queue_class).before(position or 0)
        estimate = estimate_queued(snapshot, available, work, ahead)
        if position is not None and position > EXACT_POSITIONS:
            estimate = _at_least(estimate, _promise_left(job))
        return _not_before(estimate, job.not_before)

    async def _rows_of(self, model: str) -> Rows:
        """Of the live workers; counted once for each reading of the worker registry."""
        fleet = await self._live_workers.workers()
        if fleet is not self._fleet:
            self._fleet, self._rows = fleet, {}
        if model not in self._rows:
            self._rows[model] = rows_of(fleet or (), model)
        return self._rows[model]

    async def _poll(self) -> _Measured | None:
        if time.monotonic() < self._fresh_until:
            return self._measured
        async with self._lock:
            if time.monotonic() >= self._fresh_until:
                self._measured = await self._ask()
                if self._measured is not None:
                    self._prices = Prices(
                        self._measured.snapshot.rates, per_megapixel_step=self._per_megapixel_step
                    )
                self._fresh_until = time.monotonic() + _FRESH_SECONDS
        return self._measured

    async def _ask(self) -> _Measured | None:
        try:
            text, left = await self._circuit_breaker.call(self._read)
        except RedisDown:
            return None
        if text is None:
            return None
        try:
            snapshot = Snapshot.model_validate_json(text)
        except ValidationError as error:
            unreadable("eta", error)  # of another version's dispatcher, or nonsense
            return None
        # Its age by Redis's own clock: what is not left of its time has passed.
        return _Measured(snapshot, time.monotonic() - (snapshot.ttl_seconds - left / 1000))

    async def _read(self) -> tuple[str | None, int]:
        async with self._redis.pipeline(transaction=False) as pipeline:
            pipeline.get(ETA)
            pipeline.pttl(ETA)
            text, left = await pipeline.execute()
        return text, left


def work_of_job(job: Job | Plan) -> Workload:
    """The work of a job, whether it is in the database or only planned."""
    return work_of(
        model=job.model,
        width=job.width,
        height=job.height,
        guidance_scale=job.guidance_scale,
        images=len(job.seeds),
        cost=job.cost,
    )


def work_of_image(columns: Mapping[str, Any]) -> Workload:
    """The work of a job of one image, by the columns of its row."""
    names = ("model", "width", "height", "guidance_scale", "cost")
    return work_of(images=1, **{name: columns[name] for name in names})


def serialize_eta(estimate: DurationEstimate | None) -> Eta | None:
    """The estimate as times."""
    if estimate is None:
        return None
    now = datetime.now(UTC)
    return Eta(p50=now + timedelta(seconds=estimate.p50), p90=now + timedelta(seconds=estimate.p90))


def _promise_left(job: Job) -> float:
    """Of what was estimated at the submission, as far as this process's clock can tell."""
    if job.estimate is None:
        return 0.0
    elapsed = (datetime.now(UTC) - job.created_at).total_seconds()
    return max(0.0, DurationEstimate.from_json(job.estimate).point - elapsed)


def _at_least(estimate: DurationEstimate, seconds: float) -> DurationEstimate:
    """More go first than were counted: what is left of the submission's estimate says how many."""
    longer = max(1.0, seconds / estimate.point) if estimate.point > 0 else 1.0
    point, p50, p90 = (longer * one for one in (estimate.point, estimate.p50, estimate.p90))
    return DurationEstimate(point, p50, p90, estimate.waits)


def _not_before(estimate: DurationEstimate, moment: datetime | None) -> DurationEstimate:
    """A job that failed pauses before its next attempt."""
    pause = (moment - datetime.now(UTC)).total_seconds() if moment is not None else 0.0
    if pause <= 0:
        return estimate
    return DurationEstimate(
        estimate.point + pause, estimate.p50 + pause, estimate.p90 + pause, estimate.waits
    )
