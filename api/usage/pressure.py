"""Back-pressure: refuse work beyond the system's ceiling, and say when to come back."""

import asyncio
import math
import time
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

from api.problems import Problem
from shared.logging import get_logger
from shared.quotas import statements

if TYPE_CHECKING:
    from api.deps import Resources

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
                measure = statements.measure_queue(_WINDOW, datetime.now(UTC))
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
