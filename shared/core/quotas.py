"""The quotas of an API key, and request rates."""

import time
from dataclasses import dataclass
from typing import Annotated, Any

from limits import RateLimitItemPerMinute
from limits.aio.storage import RedisStorage
from limits.aio.strategies import SlidingWindowCounterRateLimiter
from pydantic import BaseModel, ConfigDict, Field, field_validator
from redis.asyncio import Redis

from shared.core.broker import RATE_LIMIT_PREFIX

_LARGEST = 2**53 - 1


class Quotas(BaseModel):
    """Limits of one key. What is null is not limited."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False, frozen=True)

    requests_per_minute: Annotated[int, Field(ge=1, le=1_000_000)] | None = Field(
        default=None, description="Requests of any kind in a sliding minute."
    )
    queued_cost: Annotated[int, Field(ge=1, le=_LARGEST)] | None = Field(
        default=None, description="Pixels × steps × images of all jobs that wait, at once."
    )
    concurrent_jobs: Annotated[int, Field(ge=1, le=1_000_000)] | None = Field(
        default=None, description="Jobs queued or running, at once."
    )
    gpu_seconds_per_day: Annotated[float, Field(gt=0, le=1e9)] | None = Field(
        default=None,
        description="Device time of attempts that ended since 00:00 UTC, and what unfinished jobs "
        "are estimated to take.",
    )
    upload_bytes: Annotated[int, Field(ge=1, le=_LARGEST)] | None = Field(
        default=None, description="Bytes of initial images and batch files kept at once."
    )
    max_pixels: Annotated[int, Field(ge=64 * 64, le=4096 * 4096)] | None = Field(
        default=None, description="Width × height of the largest image."
    )
    models: Annotated[list[Annotated[str, Field(max_length=64)]], Field(max_length=64)] | None = (
        Field(default=None, description="Names of the models that may be used.")
    )

    @field_validator(
        "requests_per_minute", "queued_cost", "concurrent_jobs", "max_pixels", mode="before"
    )
    @classmethod
    def _whole(cls, value: object) -> object:
        """A JSON number with a zero fractional part is an integer."""
        return int(value) if isinstance(value, float) and value.is_integer() else value

    @property
    def limit_the_queue(self) -> bool:
        """Whether the database must be asked before a job is accepted."""
        limits = (self.queued_cost, self.concurrent_jobs, self.gpu_seconds_per_day)
        return any(limit is not None for limit in limits)

    def stored(self) -> dict[str, Any] | None:
        """The value of the key's column: without what is not limited; null for no limit at all."""
        return self.model_dump(exclude_none=True) or None


NO_QUOTAS = Quotas()

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
    "sliding window counter" of `limits`). Raises redis.RedisError when Redis is unavailable.
    """

    def __init__(self, redis: Redis) -> None:
        """`redis` is the client whose connections are used."""
        storage = RedisStorage(
            "async+redis://",
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

    async def peek(self, key_id: str, limit: int) -> Window:
        """The same without counting."""
        return await self._window(RateLimitItemPerMinute(limit), key_id, allowed=True)

    async def _window(self, item: RateLimitItemPerMinute, key_id: str, allowed: bool) -> Window:
        stats = await self._limiter.get_window_stats(item, "requests", key_id)
        reset = max(1, min(WINDOW, round(stats.reset_time - time.time())))
        left = max(0, stats.remaining) if allowed else 0
        return Window(item.amount, left, reset, allowed)
