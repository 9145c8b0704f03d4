"""May this key queue this work now? Back-pressure and quotas."""

import asyncio
import math
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from sqlalchemy.ext.asyncio import AsyncSession

from api.context import Resources
from api.core.errors import Problem
from api.core.principal import Principal
from shared.core import tenants
from shared.core.logging import get_logger
from shared.core.quotas import Quotas
from shared.jobs.models import Job
from shared.jobs.queries import quotas as quota_queries

_log = get_logger(__name__)

_WINDOW = timedelta(minutes=1)
"""Over which the completion rate is measured."""

_FRESH_SECONDS = 1.0

_SHARE = 0.02
"""Of the time spent measuring, at most: a queue of a million jobs takes a while to add up."""

_WITHOUT_EVIDENCE = 30
_LONGEST = 600


class LoadShedding:
    """How much work waits, all tenants together, as this process last measured it.

    Between two measurements what this process accepts is added; other processes' share is not,
    so that the ceiling may be passed by what they accept within about a second.
    """

    def __init__(self, ceiling: int) -> None:
        """`ceiling` is in pixels × steps × images."""
        self._ceiling = ceiling
        self._queued = 0
        self._per_second = 0.0
        self._fresh_until = 0.0
        self._measuring: asyncio.Task[None] | None = None

    async def check(self, resources: Resources, cost: int) -> None:
        """Take note of work about to be queued.

        Raises:
            Problem: 503 `overloaded` when it would pass the ceiling.
        """
        if self._measuring is None and time.monotonic() >= self._fresh_until:
            never_measured = self._fresh_until == 0.0
            self._measuring = asyncio.create_task(self._measure(resources))
            self._measuring.add_done_callback(self._measured)
            if never_measured:
                await asyncio.shield(self._measuring)
        excess = self._queued + cost - self._ceiling
        if excess > 0:
            detail = "More work is waiting already than the server is configured to accept."
            raise Problem("overloaded", detail, headers={"Retry-After": str(self.seconds(excess))})
        self._queued += cost

    def give_back(self, cost: int) -> None:
        """Work that was taken note of has not been queued after all."""
        self._queued = max(0, self._queued - cost)

    def seconds(self, cost: int) -> int:
        """How long this much work takes at the measured rate; a guess without one."""
        if self._per_second <= 0:
            return _WITHOUT_EVIDENCE
        return min(_LONGEST, max(1, math.ceil(cost / self._per_second)))

    async def _measure(self, resources: Resources) -> None:
        started = time.monotonic()
        try:
            async with resources.transaction() as session:
                measure = quota_queries.measure_queue(_WINDOW, datetime.now(UTC))
                queued, done = (await session.execute(measure)).one()
        except Problem:
            _log.warning("queue_measurement_timed_out")
        else:
            self._queued, self._per_second = queued, done / _WINDOW.total_seconds()
        ended = time.monotonic()
        self._fresh_until = ended + max(_FRESH_SECONDS, (ended - started) / _SHARE)

    def _measured(self, task: asyncio.Task[None]) -> None:
        self._measuring = None
        if not task.cancelled() and (error := task.exception()) is not None:
            _log.error("queue_measurement_failed", error=repr(error))


REFUSALS = (
    *("model_not_allowed", "size_not_allowed"),
    *("too_many_jobs", "queued_cost_exceeded", "gpu_seconds_exceeded"),
    *("overloaded", "quota_unavailable"),
)
"""The problems of every operation that queues work, for its documentation."""

_WHEN_FULL = 10
"""Seconds to wait for a place: about one job, where nothing better is known."""


@dataclass(frozen=True)
class Demand:
    """What is about to be queued: one job, or all of a batch."""

    cost: int
    """Pixels × steps × images."""
    models: frozenset[str]
    pixels: int
    """Of the largest image."""
    gpu_seconds: float
    """As estimated."""
    jobs: int = 1

    @classmethod
    def of_job(cls, job: Job) -> "Demand":
        """Of a job that is queued again."""
        pixels = final_pixels(job.width, job.height, job.options)
        return cls(job.cost, frozenset({job.model}), pixels, job.estimated_gpu_seconds)

    @classmethod
    def of_columns(cls, job: Mapping[str, Any]) -> "Demand":
        """Of one job, by the columns of its row."""
        pixels = final_pixels(job["width"], job["height"], job["options"])
        return cls(job["cost"], frozenset({job["model"]}), pixels, job["estimated_gpu_seconds"])


def final_pixels(width: int, height: int, options: Mapping[str, Any]) -> int:
    """Of an image of a job with these columns, after its second pass if it has one."""
    hires = options.get("hires")
    return width * height if hires is None else int(hires["width"] * hires["height"])


@asynccontextmanager
async def admitted(
    resources: Resources, session: AsyncSession, principal: Principal, demand: Demand
) -> AsyncIterator[None]:
    """Within it, queue the work. Commit right behind it: nothing else may be left to do.

    Quotas are looked at before, so that little is written in vain, and again behind what was
    written, in turn with other submissions of the key: of two, the second sees the first. That turn
    lasts from there to the commit, however long the writing takes.

    Entered after a replayed answer was looked for, because a replay queues nothing. Keys without
    quotas cost no SQL, and do not depend on Redis.

    Raises:
        Problem: 403 for a model or a size that the key may not use; 429 for a quota that would be
            passed; 503 when the system's ceiling is reached or a quota cannot be checked.
    """
    quotas = principal.quotas
    check_kind(quotas, demand)
    _check_rate(principal)
    if quotas.limit_the_queue:
        await _check_use(resources, session, principal, demand)
    load = resources.get(LoadShedding)
    await load.check(resources, demand.cost)
    try:
        yield
        if quotas.limit_the_queue:
            await session.execute(tenants.take_turn(principal.key_id))
            await _check_use(resources, session, principal, demand, is_written=True)
    except BaseException:
        load.give_back(demand.cost)
        raise


async def admit_without_sql(resources: Resources, principal: Principal, demand: Demand) -> None:
    """As `admitted`, for a key whose quotas the database need not be asked about. Whoever does not
    queue the work, as at a replay, gives it back.

    Raises:
        Problem: as `admitted`.
    """
    check_kind(principal.quotas, demand)
    _check_rate(principal)
    await resources.get(LoadShedding).check(resources, demand.cost)


def _check_rate(principal: Principal) -> None:
    if principal.quotas.requests_per_minute is not None and not principal.rate_is_known:
        raise Problem("quota_unavailable", "The key's request rate cannot be checked just now.")


def check_kind(quotas: Quotas, demand: Demand) -> None:
    """Return if the key may have such work done at all.

    Raises:
        Problem: 403 for a model or a size that the key may not use.
    """
    if quotas.models is not None and not demand.models <= set(quotas.models):
        allowed = ", ".join(quotas.models) or "no model"
        raise Problem("model_not_allowed", f"This key may use {allowed}.")
    if quotas.max_pixels is not None and demand.pixels > quotas.max_pixels:
        raise Problem(
            "size_not_allowed", f"This key may make images of {quotas.max_pixels} pixels at most."
        )


async def _check_use(
    resources: Resources,
    session: AsyncSession,
    principal: Principal,
    demand: Demand,
    *,
    is_written: bool = False,
) -> None:
    """Whether the key's quotas have room for the work, or for all there is if it is written."""
    quotas = principal.quotas
    used = await session.execute(quota_queries.measure_use(principal.key_id))
    jobs, queued, reserved, spent = used.one()
    if is_written:
        jobs, queued = jobs - demand.jobs, queued - demand.cost
        reserved -= demand.gpu_seconds
    if quotas.concurrent_jobs is not None and jobs + demand.jobs > quotas.concurrent_jobs:
        raise _used_up(
            "too_many_jobs",
            f"This key may have {quotas.concurrent_jobs} jobs at once, and has {jobs}.",
            _WHEN_FULL,
        )
    if quotas.queued_cost is not None and (excess := queued + demand.cost - quotas.queued_cost) > 0:
        raise _used_up(
            "queued_cost_exceeded",
            f"This key may have {quotas.queued_cost} pixel steps waiting, and has {queued}.",
            resources.get(LoadShedding).seconds(excess),
        )
    limit = quotas.gpu_seconds_per_day
    if limit is not None and spent + reserved + demand.gpu_seconds > limit:
        # What unfinished jobs hold back may be given back sooner.
        is_spent = spent + demand.gpu_seconds > limit
        raise _used_up(
            "gpu_seconds_exceeded",
            f"This would take about {demand.gpu_seconds:.3g} GPU-seconds. Of today's {limit:g} "
            f"this key has used {spent:.3g}, and its unfinished jobs hold back {reserved:.3g}.",
            seconds_to_midnight() if is_spent else _WHEN_FULL,
        )


def _used_up(code: str, detail: str, seconds: int) -> Problem:
    return Problem(code, detail, headers={"Retry-After": str(seconds)})


def midnight() -> datetime:
    """The beginning of today, UTC."""
    return datetime.now(UTC).replace(hour=0, minute=0, second=0, microsecond=0)


def seconds_to_midnight() -> int:
    """Until the day's quotas start over."""
    return int((midnight() + timedelta(days=1) - datetime.now(UTC)).total_seconds()) + 1
