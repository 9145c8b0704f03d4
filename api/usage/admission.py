"""May this key queue this work now? Every way to queue work asks here, before it writes."""

import time
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from sqlalchemy.ext.asyncio import AsyncSession

from api.deps import Resources
from api.principal import Principal
from api.problems import Problem
from shared.quotas import Quotas, statements

REFUSALS = (
    *("model_not_allowed", "size_not_allowed"),
    *("too_many_jobs", "queued_cost_exceeded", "gpu_seconds_exceeded"),
    *("overloaded", "quota_unavailable"),
)
"""The problems of every operation that queues work, for its documentation."""

_SPENT_FRESH_SECONDS = 2.0
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
    jobs: int = 1


class Spent:
    """Device time of today by key, remembered for a moment: it grows only as jobs end."""

    def __init__(self) -> None:
        self._known: dict[str, tuple[float, float]] = {}

    async def today(self, session: AsyncSession, principal: Principal) -> float:
        """GPU-seconds of the key's jobs that were submitted since midnight UTC."""
        fresh_until, seconds = self._known.get(principal.key_id, (0.0, 0.0))
        if time.monotonic() < fresh_until:
            return seconds
        asked = statements.sum_gpu_seconds(principal.tenant_id, principal.key_id, midnight())
        seconds = (await session.scalars(asked)).one()
        if len(self._known) > 4096:
            self._known.clear()
        self._known[principal.key_id] = (time.monotonic() + _SPENT_FRESH_SECONDS, seconds)
        return seconds


async def admit(
    resources: Resources, session: AsyncSession, principal: Principal, work: Work
) -> None:
    """Return if the work may be queued in this transaction.

    Called after a replayed answer was looked for, because a replay queues nothing. Keys without
    quotas cost no SQL, and do not depend on Redis.

    Raises:
        Problem: 403 for a model or a size that the key may not use; 429 for a quota that is used
            up; 503 when the system's ceiling is reached or a quota cannot be checked.
    """
    quotas = principal.quotas
    check_kind(quotas, work)
    if quotas.requests_per_minute is not None and not principal.rate_is_known:
        raise Problem("quota_unavailable", "The key's request rate cannot be checked just now.")
    if quotas.limit_the_queue:
        await _check_queue(resources, session, principal, work)
    await resources.pressure.check(resources, work.cost)


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


async def _check_queue(
    resources: Resources, session: AsyncSession, principal: Principal, work: Work
) -> None:
    quotas = principal.quotas
    await session.execute(statements.take_turn(principal.key_id))
    jobs, queued = (await session.execute(statements.count_unfinished(principal.key_id))).one()
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
    if quotas.gpu_seconds_per_day is not None:
        spent = await resources.spent.today(session, principal)
        if spent >= quotas.gpu_seconds_per_day:
            raise _used_up(
                "gpu_seconds_exceeded",
                f"This key has used {spent:.1f} of today's {quotas.gpu_seconds_per_day:g} seconds.",
                seconds_to_midnight(),
            )


def _used_up(code: str, detail: str, seconds: int) -> Problem:
    return Problem(code, detail, headers={"Retry-After": str(seconds)})


def midnight() -> datetime:
    """The beginning of today, UTC."""
    return datetime.now(UTC).replace(hour=0, minute=0, second=0, microsecond=0)


def seconds_to_midnight() -> int:
    """Until the day's quotas begin anew."""
    return int((midnight() + timedelta(days=1) - datetime.now(UTC)).total_seconds()) + 1
