"""Requests per minute, counted in Redis with `limits`."""

import time
from dataclasses import dataclass

from limits import RateLimitItemPerMinute
from limits.aio.storage import RedisStorage
from limits.aio.strategies import SlidingWindowCounterRateLimiter
from redis.asyncio import Redis

from shared.queue.names import RATE_LIMIT_PREFIX

WINDOW = 60
"""Seconds."""


@dataclass(frozen=True)
class Window:
    """Where a key stands in its minute."""

    limit: int
    left: int
    seconds_to_reset: int
    """Until the oldest part of what is counted falls out of the window."""
    allowed: bool


class RequestRates:
    """Counts requests of keys. The window slides: there is no burst at the turn of a minute.

    Two counters a key, weighted by how far the minute has come, whatever the limit (the
    "sliding window counter" of `limits`). Raises redis.RedisError when Redis is away.
    """

    def __init__(self, redis: Redis, url: str) -> None:
        """`redis` is the client whose connections are used; `url` its address."""
        storage = RedisStorage(
            f"async+{url}",
            implementation="redispy",
            key_prefix=RATE_LIMIT_PREFIX,
            connection_pool=redis.connection_pool,  # type: ignore[arg-type]  # annotated too narrowly
        )
        self._limiter = SlidingWindowCounterRateLimiter(storage)

    async def count(self, key_id: str, limit: int) -> Window:
        """Count one request, unless it is one too many."""
        item = RateLimitItemPerMinute(limit)
        allowed = await self._limiter.hit(item, "requests", key_id)
        return await self._window(item, key_id, allowed)

    async def look(self, key_id: str, limit: int) -> Window:
        """The same without counting."""
        return await self._window(RateLimitItemPerMinute(limit), key_id, allowed=True)

    async def _window(self, item: RateLimitItemPerMinute, key_id: str, allowed: bool) -> Window:
        stats = await self._limiter.get_window_stats(item, "requests", key_id)
        reset = max(1, min(WINDOW, round(stats.reset_time - time.time())))
        left = max(0, stats.remaining) if allowed else 0
        return Window(item.amount, left, reset, allowed)
