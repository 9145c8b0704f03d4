"""Keep what estimates rest on up to date, in the process that leads the dispatcher.

Rates and calibration are learnt from the attempts that ended since the last look; the queue is
measured. Both go to Redis as one snapshot, which every API process reads: the database is asked
once for all of them.
"""

import math
import time
from collections import Counter
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import redis
from prometheus_client import Gauge, Histogram
from sqlalchemy.orm import Session, sessionmaker

from shared.core import worker_registry
from shared.core.broker import ETA
from shared.jobs.calibration import (
    Calibration,
    DurationEstimate,
    EstimateOutcome,
    Finished,
    RateBook,
    Workload,
    work_of,
)
from shared.jobs.estimates import Load, Snapshot, ThroughputMeter
from shared.jobs.queries import lookups
from shared.jobs.state import JobState
from worker.core.loop import LeaderLoop

_PAUSE_SECONDS = 1.0

_SHARE = 0.05
"""Of the time spent measuring, at most: a queue of a million jobs takes a while to add up."""

_FIRST_LOOK = timedelta(days=7)
"""How far a new leader looks back for its first evidence…"""

_FIRST_ATTEMPTS = 2_000
"""…and how much of it it takes."""

_OVERLAP = timedelta(seconds=30)
"""An image's id is older than its commit, and of another clock: what was seen is seen again."""

_A_SECOND = 1_000
"""Attempts taken into account for each second since the last look, at most."""

_TTL_SECONDS = 15.0

RATIO = Histogram(
    "darkroom_eta_actual_to_estimated_ratio",
    "Seconds that a job took, from submission to end, over its p50 estimate.",
    buckets=(0.25, 0.5, 0.7, 0.8, 0.9, 1.0, 1.1, 1.25, 1.5, 2.0, 3.0, 5.0, 10.0),
)

COVERAGE = Gauge(
    "darkroom_eta_coverage_ratio",
    "Share of recent jobs done by their p50 and p90 estimates; 0.5 and 0.9 are perfect.",
    ["estimate"],
)

RELATIVE_ERROR = Gauge(
    "darkroom_eta_relative_error_ratio",
    "Median over recent jobs of |actual - p50 estimate| over actual.",
)


class Estimator(LeaderLoop):
    """Measures while its process leads."""

    def __init__(
        self,
        database: sessionmaker[Session],
        client: "redis.Redis",
        is_leader: Callable[[], bool],
    ) -> None:
        super().__init__("estimator", _PAUSE_SECONDS, is_leader, waits_first=True, join=10)
        self._database = database
        self._redis = client
        self.reset()

    def reset(self) -> None:
        """Another process may have led meanwhile; what this one measured is no longer shown."""
        COVERAGE.clear()
        RELATIVE_ERROR.set(math.nan)
        self._book = RateBook()
        self._calibration = Calibration()
        self._meter = ThroughputMeter()
        self._seen: dict[UUID, datetime] = {}
        self._polled_at: datetime | None = None
        self._pause = _PAUSE_SECONDS

    def lead(self) -> float:
        """Measure, and spend a small share of the time on it."""
        started = time.monotonic()
        self.measure()
        self._pause = max(_PAUSE_SECONDS, (time.monotonic() - started) / _SHARE)
        return self._pause

    def measure(self) -> Snapshot:
        """Learn from what has ended, measure what has not, and publish both.

        Raises:
            SQLAlchemyError: the database cannot be reached.
            redis.RedisError: Redis cannot be reached.
        """
        before, done = self._polled_at, self._learn()
        started = time.monotonic()
        loads = self._measure()
        spent = time.monotonic() - started
        if before is not None and self._polled_at is not None:
            self._meter.observe(
                (self._polled_at - before).total_seconds(), done, _waiting(loads), self._rows()
            )
        snapshot = Snapshot(
            rates=self._book.rates(),
            factors=self._calibration.factors(),
            throughputs=self._meter.throughputs(),
            loads=loads,
            ttl_seconds=max(_TTL_SECONDS, 5 * self._pause, 5 * spent / _SHARE),
        )
        ttl = int(snapshot.ttl_seconds * 1000)
        self._redis.set(ETA, snapshot.model_dump_json(), px=ttl)
        return snapshot

    def _rows(self) -> dict[str, int]:
        """Of the live workers, by the models that are warm there."""
        rows: Counter[str] = Counter()
        for worker in worker_registry.list_workers(self._redis):
            for model in worker.models:
                if worker.warm(model.name) is not None:
                    rows[model.name] += model.batch_size or 1
        return rows

    def _learn(self) -> dict[str, tuple[int, float]]:
        """Learn from the attempts that ended since the last time: (jobs, cost) by model."""
        now = datetime.now(UTC)
        first = self._polled_at is None
        if self._polled_at is None:
            since, limit = now - _FIRST_LOOK, _FIRST_ATTEMPTS
        else:
            since = self._polled_at - _OVERLAP
            limit = math.ceil(_A_SECOND * max(1.0, (now - self._polled_at).total_seconds()))
        with self._database.begin() as session:
            rows = session.execute(lookups.list_finished(since, limit)).all()
        fresh = [row for row in reversed(rows) if row.image_id not in self._seen]
        self._polled_at = now
        self._seen = {
            image: at for image, at in self._seen.items() if at > now - 2 * _OVERLAP
        } | dict.fromkeys((row.image_id for row in fresh), now)
        self._book.learn(_finished(row) for row in fresh)
        outcomes = [_outcome(row) for row in fresh if row.estimate is not None]
        self._calibration.learn(outcomes)
        if not first:  # those that another leader has counted
            for outcome in outcomes:
                RATIO.observe(outcome.seconds / max(outcome.estimate.p50, 1e-6))
        quality = self._calibration.quality()
        if quality is not None:
            COVERAGE.labels("p50").set(quality.covered_p50)
            COVERAGE.labels("p90").set(quality.covered_p90)
            RELATIVE_ERROR.set(quality.relative_error)
        done: dict[str, tuple[int, float]] = {}
        for row in fresh:
            jobs, cost = done.get(row.model, (0, 0.0))
            work = _work(row)
            done[row.model] = (jobs + 1, cost + work.cost * work.images)
        return done

    def _measure(self) -> tuple[Load, ...]:
        with self._database.begin() as session:
            rows = session.execute(lookups.measure_loads()).all()
        loads: dict[tuple[str, str], dict[str, Any]] = {}
        for model, queue_class, state, jobs, images, cost in rows:
            load = loads.setdefault(
                (model, queue_class), {"model": model, "queue_class": queue_class}
            )
            if state == JobState.RUNNING:
                load.update(running_images=images, running_cost=cost)
            else:
                load.update(queued_jobs=jobs, queued_images=images, queued_cost=cost)
        return tuple(Load(**load) for load in loads.values())


def _finished(row: Any) -> Finished:
    return Finished(
        work=_work(row),
        device=row.device,
        rows=row.rows,
        gpu_seconds=row.gpu_seconds,
        run_seconds=row.run_seconds,
    )


def _outcome(row: Any) -> EstimateOutcome:
    return EstimateOutcome(row.model, DurationEstimate.from_json(row.estimate), row.total_seconds)


def _waiting(loads: tuple[Load, ...]) -> Counter[str]:
    """Queued jobs by model."""
    waiting: Counter[str] = Counter()
    for load in loads:
        waiting[load.model] += load.queued_jobs
    return waiting


def _work(row: Any) -> Workload:
    return work_of(
        model=row.model,
        width=row.width,
        height=row.height,
        guidance_scale=row.guidance_scale,
        images=row.images,
        cost=row.cost,
    )
