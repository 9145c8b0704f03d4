"""May this key queue this work now? Request rates, back-pressure and quotas."""

import asyncio
import math
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

from fastapi import Request
from sqlalchemy.ext.asyncio import AsyncSession

from api.context import Resources
from api.core.errors import Problem
from api.core.middleware import EXTRA_HEADERS
from api.core.principal import Principal
from api.core.publisher import RedisDown
from shared.core import quotas as quota_queries
from shared.core.logging import get_logger
from shared.core.quotas import WINDOW, Quotas, Window

if TYPE_CHECKING:
    from api.context import Resources


async def count_request(
    resources: Resources, request: Request, key_id: str, quotas: Quotas
) -> bool:
    """Count the request; False when Redis cannot say: reading goes on, spending does not.

    Raises:
        Problem: 429 `rate_limited`.
    """
    if quotas.requests_per_minute is None:
        return True
    if resources.circuit.is_open:
        return False
    try:
        window = await resources.circuit.call(
            resources.rates.count(key_id, quotas.requests_per_minute)
        )
    except RedisDown:
        return False
    request.scope[EXTRA_HEADERS].update(rate_headers(window))
    if not window.allowed:
        raise Problem(
            "rate_limited",
            f"This key may send {window.limit} requests a minute.",
            headers={"Retry-After": str(window.seconds_to_reset)},
        )
    return True


def rate_headers(window: Window) -> dict[str, str]:
    """Structured fields of the IETF's draft-ietf-httpapi-ratelimit-headers."""
    return {
        "RateLimit-Policy": f'"requests";q={window.limit};w={WINDOW}',
        "RateLimit": f'"requests";r={window.left};t={window.seconds_to_reset}',
    }


_log = get_logger(__name__)


_WINDOW = timedelta(minutes=1)
"""Over which the completion rate is measured."""


_FRESH_SECONDS = 1.0


_SHARE = 0.02
"""Of the time spent measuring, at most: a queue of a million jobs takes a while to add up."""


_WITHOUT_EVIDENCE = 30


_LONGEST = 600


class Pressure:
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

    async def check(self, resources: "Resources", cost: int) -> None:
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
            detail = "More work waits already than the server is set to accept."
            raise Problem("overloaded", detail, headers={"Retry-After": str(self.seconds(excess))})
        self._queued += cost

    def seconds(self, cost: int) -> int:
        """How long this much work takes at the measured rate; a guess without one."""
        if self._per_second <= 0:
            return _WITHOUT_EVIDENCE
        return min(_LONGEST, max(1, math.ceil(cost / self._per_second)))

    async def _measure(self, resources: "Resources") -> None:
        started = time.monotonic()
        try:
            async with resources.transaction() as session:
                measure = quota_queries.measure_queue(_WINDOW, datetime.now(UTC))
                queued, done = (await session.execute(measure)).one()
        except Problem:
            _log.warning("the queue could not be measured")
        else:
            self._queued, self._per_second = queued, done / _WINDOW.total_seconds()
        ended = time.monotonic()
        self._fresh_until = ended + max(_FRESH_SECONDS, (ended - started) / _SHARE)

    def _measured(self, task: asyncio.Task[None]) -> None:
        self._measuring = None
        if not task.cancelled() and (error := task.exception()) is not None:
            _log.error("measuring the queue failed", error=repr(error))


REFUSALS = (
    *("model_not_allowed", "size_not_allowed"),
    *("too_many_jobs", "queued_cost_exceeded", "gpu_seconds_exceeded"),
    *("overloaded", "quota_unavailable"),
)
"""The problems of every operation that queues work, for its documentation."""


UPLOAD_REFUSAL = "upload_bytes_exceeded"


_WHEN_KEPT = 3600
"""Seconds: what is kept goes when somebody deletes it, or after days."""


_WHEN_FULL = 10
"""Seconds to wait for a place: about one job, where nothing better is known."""


@dataclass(frozen=True)
class Work:
    """What is about to be queued: one job, or all of a batch."""

    cost: int
    """Pixels × steps × images."""
    models: frozenset[str]
    pixels: int
    """Of the largest picture."""
    gpu_seconds: float
    """As estimated."""
    jobs: int = 1


def work_of_row(job: Mapping[str, Any]) -> Work:
    """The work of one job, from the columns of its row."""
    return Work(
        job["cost"],
        frozenset({job["model"]}),
        job["width"] * job["height"],
        job["estimated_gpu_seconds"],
    )


@asynccontextmanager
async def admitted(
    resources: Resources, session: AsyncSession, principal: Principal, work: Work
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
    check_kind(quotas, work)
    if quotas.requests_per_minute is not None and not principal.rate_is_known:
        raise Problem("quota_unavailable", "The key's request rate cannot be checked just now.")
    if quotas.limit_the_queue:
        await _check_use(resources, session, principal, work)
    await resources.pressure.check(resources, work.cost)
    yield
    if quotas.limit_the_queue:
        await session.execute(quota_queries.take_turn(principal.key_id))
        await _check_use(resources, session, principal, work, is_written=True)


async def check_uploads(resources: Resources, principal: Principal) -> None:
    """Return if the key may keep anything more; asked before the work of taking it in.

    Raises:
        Problem: 429.
    """
    if principal.quotas.upload_bytes is not None:
        async with resources.tenant_transaction(principal) as session:
            await _check_uploads(session, principal, 1)


@asynccontextmanager
async def upload_admitted(session: AsyncSession, principal: Principal) -> AsyncIterator[None]:
    """Within it, insert the row of an upload. Commit right behind it, as with `admitted`.

    Raises:
        Problem: 429.
    """
    yield
    if principal.quotas.upload_bytes is not None:
        await session.execute(quota_queries.take_turn(principal.key_id))
        await _check_uploads(session, principal, 0)


async def _check_uploads(session: AsyncSession, principal: Principal, more: int) -> None:
    limit = principal.quotas.upload_bytes
    kept = (await session.scalars(quota_queries.sum_uploads(principal.key_id))).one()
    if limit is not None and kept + more > limit:
        detail = f"This key may keep {limit} bytes of uploads. Delete some, or wait."
        raise _used_up(UPLOAD_REFUSAL, detail, _WHEN_KEPT)


def check_kind(quotas: Quotas, work: Work) -> None:
    """Return if the key may have such work done at all.

    Raises:
        Problem: 403 for a model or a size that the key may not use.
    """
    if quotas.models is not None and not work.models <= set(quotas.models):
        allowed = ", ".join(quotas.models) or "no model"
        raise Problem("model_not_allowed", f"This key may use {allowed}.")
    if quotas.max_pixels is not None and work.pixels > quotas.max_pixels:
        raise Problem(
            "size_not_allowed", f"This key may make pictures of {quotas.max_pixels} pixels at most."
        )


async def _check_use(
    resources: Resources,
    session: AsyncSession,
    principal: Principal,
    work: Work,
    *,
    is_written: bool = False,
) -> None:
    """Whether the key's quotas have room for the work, or for all there is if it is written."""
    quotas = principal.quotas
    used = await session.execute(quota_queries.measure_use(principal.key_id))
    jobs, queued, reserved, spent = used.one()
    if is_written:
        jobs, queued = jobs - work.jobs, queued - work.cost
        reserved -= work.gpu_seconds
    if quotas.concurrent_jobs is not None and jobs + work.jobs > quotas.concurrent_jobs:
        raise _used_up(
            "too_many_jobs",
            f"This key may have {quotas.concurrent_jobs} jobs at once, and has {jobs}.",
            _WHEN_FULL,
        )
    if quotas.queued_cost is not None and (excess := queued + work.cost - quotas.queued_cost) > 0:
        raise _used_up(
            "queued_cost_exceeded",
            f"This key may have {quotas.queued_cost} pixel steps waiting, and has {queued}.",
            resources.pressure.seconds(excess),
        )
    limit = quotas.gpu_seconds_per_day
    if limit is not None and spent + reserved + work.gpu_seconds > limit:
        # What unfinished jobs hold back may be given back sooner.
        is_spent = spent + work.gpu_seconds > limit
        raise _used_up(
            "gpu_seconds_exceeded",
            f"This would take about {work.gpu_seconds:.3g} GPU-seconds. Of today's {limit:g} this "
            f"key has used {spent:.3g}, and its unfinished jobs hold back {reserved:.3g}.",
            seconds_to_midnight() if is_spent else _WHEN_FULL,
        )


def _used_up(code: str, detail: str, seconds: int) -> Problem:
    return Problem(code, detail, headers={"Retry-After": str(seconds)})


def midnight() -> datetime:
    """The beginning of today, UTC."""
    return datetime.now(UTC).replace(hour=0, minute=0, second=0, microsecond=0)


def seconds_to_midnight() -> int:
    """Until the day's quotas begin anew."""
    return int((midnight() + timedelta(days=1) - datetime.now(UTC)).total_seconds()) + 1
