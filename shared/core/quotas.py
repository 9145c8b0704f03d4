"""The quotas of an API key, request rates, and the queries behind both."""

import time
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Annotated, Any

from limits import RateLimitItemPerMinute
from limits.aio.storage import RedisStorage
from limits.aio.strategies import SlidingWindowCounterRateLimiter
from pydantic import BaseModel, ConfigDict, Field, field_validator
from redis.asyncio import Redis
from sqlalchemy import (
    BigInteger,
    Delete,
    Insert,
    Integer,
    Select,
    Update,
    cast,
    delete,
    func,
    insert,
    literal,
    select,
    update,
)

from shared.batches.models import BatchFile
from shared.core.broker import RATE_LIMIT_PREFIX
from shared.core.ids import earliest_id_at
from shared.images.models import Image, Upload
from shared.jobs.models import DeviceTime, Job
from shared.jobs.queries.parts import SCAN_TIME, utc_day
from shared.jobs.state import JobState

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
        default=None, description="Width × height of the largest picture."
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
        """Whether the ledger must be asked before a job is accepted."""
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


def take_turn(key_id: str) -> Select[None]:
    """Wait for other submissions with this key: two must not both see the last free place.

    The turn ends with the transaction.
    """
    return select(func.pg_advisory_xact_lock(func.hashtextextended(f"quota {key_id}", 0)))


def measure_use(key_id: str) -> Select[int, int, float, float]:
    """What a key uses, all as of one moment.

    (jobs queued or running, cost of those queued, GPU-seconds that the unfinished are estimated to
    take, GPU-seconds of the attempts that ended today)
    """
    waiting = func.sum(Job.cost).filter(Job.state == JobState.QUEUED)
    spent = (
        select(func.coalesce(func.sum(DeviceTime.gpu_seconds), 0.0))
        .where(DeviceTime.api_key_id == key_id, DeviceTime.day == utc_day(SCAN_TIME))
        .scalar_subquery()
    )
    return select(
        func.count(),
        cast(func.coalesce(waiting, 0), BigInteger),
        func.coalesce(func.sum(Job.estimated_gpu_seconds), 0.0),
        spent,
    ).where(Job.api_key_id == key_id, Job.finished_at.is_(None))


def sum_uploads(key_id: str) -> Select[int]:
    """Bytes of the initial images and batch files that are kept for a key."""
    sums = [
        select(func.coalesce(func.sum(table.bytes), 0))
        .where(table.api_key_id == key_id)
        .scalar_subquery()
        for table in (Upload, BatchFile)
    ]
    return select(cast(sums[0] + sums[1], BigInteger))


def hand_over(old_key_id: str, new_key_id: str) -> tuple[Update | Insert, ...]:
    """What counts for a key counts for the one that takes its place: it does not begin anew."""
    today = select(
        literal(new_key_id), DeviceTime.day, DeviceTime.slot, DeviceTime.tenant_id,
        DeviceTime.gpu_seconds,
    ).where(DeviceTime.api_key_id == old_key_id, DeviceTime.day == utc_day(SCAN_TIME))  # fmt: skip
    names = ["api_key_id", "day", "slot", "tenant_id", "gpu_seconds"]
    uploads = (
        update(table).where(table.api_key_id == old_key_id).values(api_key_id=new_key_id)
        for table in (Upload, BatchFile)
    )
    return insert(DeviceTime).from_select(names, today), *uploads


def purge_device_time(older_than: timedelta) -> Delete:
    """Retention: quotas need today's alone."""
    return delete(DeviceTime).where(DeviceTime.day < utc_day(SCAN_TIME - older_than))


def measure_queue(window: timedelta, now: datetime) -> Select[int, int]:
    """(cost of all that waits, cost of the pictures that were finished within the window).

    `now` may be the caller's clock: an image's id carries that of the worker that made it.
    """
    waiting = (
        select(func.coalesce(func.sum(Job.cost), 0))
        .where(Job.state == JobState.QUEUED)
        .scalar_subquery()
    )
    steps = cast(Image.receipt["steps"].astext, Integer)
    pixels = cast(Image.width, BigInteger) * Image.height
    done = (
        select(func.coalesce(func.sum(pixels * steps), 0))
        .where(Image.id >= earliest_id_at(now - window))
        .scalar_subquery()
    )
    return select(cast(waiting, BigInteger), cast(done, BigInteger))
