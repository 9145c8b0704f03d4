"""Follow jobs and batches: one reader of Redis and one poll of the database, for all who wait.

Redis tells of a job's events as they come; it only notifies. One blocking XREAD, on one
connection, covers the streams of all that this process follows. The database is asked every few
seconds about all of them together, for an end that no event told of, and whether the keys that
follow are still good.
"""

import asyncio
import contextlib
import random
from collections import defaultdict
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

from redis.asyncio import Redis
from redis.exceptions import RedisError, ResponseError

from api.context import Resources
from api.core.errors import Problem
from api.core.principal import Principal
from api.core.publisher import CircuitBreaker, RedisDown
from api.jobs import service
from api.jobs.redis_events import START, StreamEvent, entries, order
from api.jobs.schemas import Job
from shared.batches import queries as batch_queries
from shared.core import broker, tenants
from shared.core.ids import new_id
from shared.core.logging import get_logger
from shared.jobs.queries import lookups
from shared.jobs.state import TERMINAL_STATES

_log = get_logger(__name__)

_DATABASE_SECONDS = 5.0
"""Between polls of the database; also the longest that a revoked key follows on."""
_DATABASE_SECONDS_ALONE = 1.0
"""The same while Redis is unavailable."""
_BLOCK_SECONDS = 1.0
"""The longest that a new follower waits to be heard where the reader cannot be woken."""
_RETRY_SECONDS = 1.0
"""Before a Redis that failed is asked again."""
_PER_STREAM = 0.00005
"""Seconds between two reads for each stream that is read: costs a twentieth of a core at most,
and 25 ms of promptness where 500 jobs are followed."""
_AT_ONCE = 16
"""Entries of a stream in one read: previews of hundreds of streams must fit into memory."""
_ENOUGH = 32
"""Entries that lie ready for a follower which does not take them; more stay in Redis."""
_READS_AT_ONCE = 4
"""Jobs read for followers at the same moment: half of the pool is left to other requests."""


@dataclass(eq=False)
class Follower:
    """A client that follows one job or batch: what it has seen, and what it has yet to see."""

    followed: UUID
    """The job or the batch."""
    stream: str
    """Its key in Redis."""
    key_id: str
    position: str
    """The Redis id of the newest entry that was read for it."""
    sequence: int
    """Of the newest state of the job that it knows; of a batch the time of its newest end."""
    events: list[StreamEvent] = field(default_factory=list)
    """Read, and not taken yet."""
    has_moved: bool = False
    """The database knows of a newer state. Set for jobs only."""
    has_ended: bool = False
    """In that state the job has ended, or it is gone."""
    key_has_ended: bool = False
    has_left: bool = False
    """Its client is gone."""
    is_of_batch: bool = False
    _news: asyncio.Event = field(default_factory=asyncio.Event)

    def tell(self) -> None:
        """Say that something has changed."""
        self._news.set()

    def leave(self) -> None:
        """Nobody waits for it any more."""
        self.has_left = True
        self._news.set()

    async def news(self, seconds: float) -> bool:
        """Wait for anything to tell; False when nothing came within `seconds`."""
        try:
            await asyncio.wait_for(self._news.wait(), max(0.0, seconds))
        except TimeoutError:
            return False
        self._news.clear()
        return True

    def take_move(self) -> bool:
        """Whether the database has moved since the last call."""
        moved, self.has_moved = self.has_moved, False
        return moved


class Following:
    """All followers of jobs and batches in this process."""

    def __init__(self, redis: Redis, quick: Redis, circuit_breaker: CircuitBreaker) -> None:
        """`redis` is for blocking reads, `quick` for waking them."""
        self._redis = redis
        self._quick = quick
        self._circuit_breaker = circuit_breaker
        self._followers: dict[UUID, set[Follower]] = defaultdict(set)
        self._some = asyncio.Event()
        """Set while anybody follows."""
        self._redis_failed = asyncio.Event()
        self._unreadable: set[UUID] = set()
        """Jobs and batches under whose key lies something else than a stream."""
        self._reading = False
        self._waking: asyncio.Task[None] | None = None
        self._wake_key = broker.wake_key(new_id().hex)
        self._woken = START
        self._turns = asyncio.Semaphore(_READS_AT_ONCE)

    @asynccontextmanager
    async def running(self, resources: Resources) -> AsyncIterator[None]:
        """Read and look as long as this lasts."""
        tasks = [asyncio.create_task(self._read()), asyncio.create_task(self._watch(resources))]
        try:
            yield
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    @contextmanager
    def follow(self, job_id: UUID, key_id: str, position: str, sequence: int) -> Iterator[Follower]:
        """Be told of what happens to a job after this entry and this state of it."""
        stream = broker.events_key(job_id)
        with self._followed_by(Follower(job_id, stream, key_id, position, sequence)) as follower:
            yield follower

    @contextmanager
    def follow_batch(self, batch_id: UUID, key_id: str) -> Iterator[Follower]:
        """Be told when jobs of a batch end, or the batch itself."""
        stream = broker.batch_key(batch_id)
        follower = Follower(batch_id, stream, key_id, START, -1, is_of_batch=True)
        with self._followed_by(follower):
            yield follower

    @contextmanager
    def _followed_by(self, follower: Follower) -> Iterator[Follower]:
        group = self._followers[follower.followed]
        group.add(follower)
        self._some.set()
        self.listen()
        try:
            yield follower
        finally:
            group.discard(follower)
            if not group:
                del self._followers[follower.followed]
                self._unreadable.discard(follower.followed)
            if not self._followers:
                self._some.clear()

    async def read_job(self, resources: Resources, principal: Principal, job_id: str) -> Job:
        """The job as it is now. Of many who ask, a few are served at a time.

        Raises:
            Problem: 404 for an unknown job, 503 when Postgres is unavailable.
        """
        async with self._turns:
            return await service.get(resources, principal, job_id)

    def take_events(self, follower: Follower) -> list[StreamEvent]:
        """What has come for it since the last call."""
        taken, follower.events = follower.events, []
        if len(taken) >= _ENOUGH:
            self.listen()  # It was left out meanwhile.
        return taken

    def listen(self) -> None:
        """Somebody wants to hear what the read that is under way does not ask for."""
        if self._reading and self._waking is None and not self._circuit_breaker.is_open:
            self._waking = asyncio.create_task(self._wake())

    async def _wake(self) -> None:
        pipeline = self._quick.pipeline(transaction=False)
        pipeline.xadd(self._wake_key, {"at": ""}, maxlen=1, approximate=False)
        pipeline.expire(self._wake_key, 60)
        try:
            await self._circuit_breaker.call(pipeline.execute)
        except RedisDown:
            pass  # The read ends by itself, within a second.
        finally:
            self._waking = None

    # Redis -----------------------------------------------------------------------------------

    async def _read(self) -> None:
        while True:
            await self._some.wait()
            try:
                await self._read_once()
            except Exception as error:  # whatever it is: without this task nobody hears anything
                if isinstance(error, ResponseError) and await self._set_aside():
                    continue
                self._redis_failed.set()
                _log.warning("events_unreadable", error=type(error).__name__)
                await asyncio.sleep(_RETRY_SECONDS)

    async def _read_once(self) -> None:
        streams: dict[Any, Any] = {self._wake_key: self._woken}
        followed = {}
        for of, followers in self._followers.items():
            eager = [one for one in followers if len(one.events) < _ENOUGH]
            if eager and of not in self._unreadable:
                key = eager[0].stream
                followed[key] = of
                streams[key] = min((one.position for one in eager), key=order)
        self._reading = True
        try:
            answer: Any = await self._redis.xread(
                streams, count=_AT_ONCE, block=int(_BLOCK_SECONDS * 1000)
            )
        finally:
            self._reading = False
        self._redis_failed.clear()
        for key, raw in answer or ():
            if key == self._wake_key:
                self._woken = raw[-1][0]
            else:
                self._hand_out(followed[key], entries(raw), raw[-1][0])
        await asyncio.sleep(len(streams) * _PER_STREAM)

    def _hand_out(self, followed: UUID, events: list[StreamEvent], newest: str) -> None:
        for follower in self._followers.get(followed, ()):
            if len(follower.events) >= _ENOUGH or order(newest) <= order(follower.position):
                continue
            new = [event for event in events if order(event.id) > order(follower.position)]
            follower.position = newest  # past those, too, that are no events
            if new:
                follower.events += new
                follower.tell()

    async def _set_aside(self) -> bool:
        """Leave out keys that are no streams; whether there are any. Their followers have the
        database."""
        streams = {of: next(iter(group)).stream for of, group in self._followers.items()}
        pipeline = self._redis.pipeline(transaction=False)
        for stream in streams.values():
            pipeline.type(stream)
        try:
            kinds = await pipeline.execute()
        except (RedisError, OSError):
            return False
        wrong = {of for of, kind in zip(streams, kinds, strict=True) if kind not in _READABLE}
        new = wrong - self._unreadable
        self._unreadable |= wrong
        if new:
            _log.warning("event_key_has_wrong_type", count=len(new))
        return bool(new)

    # The database ------------------------------------------------------------------------------

    async def _watch(self, resources: Resources) -> None:
        while True:
            await self._some.wait()
            alone = self._redis_failed.is_set()
            seconds = _DATABASE_SECONDS_ALONE if alone else _DATABASE_SECONDS
            pause = seconds * random.uniform(0.8, 1.0)
            if alone:
                await asyncio.sleep(pause)
            else:
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(self._redis_failed.wait(), pause)
            try:
                await self._poll(resources)
            except Problem:
                pass  # Postgres is unavailable: clients keep waiting.
            except Exception as error:
                _log.error("poll_of_jobs_failed", error=repr(error))

    async def _poll(self, resources: Resources) -> None:
        followers = [one for group in self._followers.values() for one in group]
        jobs = list({one.followed for one in followers if not one.is_of_batch})
        batches = list({one.followed for one in followers if one.is_of_batch})
        keys = list({one.key_id for one in followers})
        if not followers:
            return
        async with resources.transaction() as session:
            changed = (await session.execute(lookups.read_states(jobs))).all() if jobs else ()
            last = batch_queries.read_ends(batches)
            ends = dict((await session.execute(last)).tuples().all()) if batches else {}
            live = set(await session.scalars(tenants.find_live(keys, datetime.now(UTC))))
        states = {job_id: (state, sequence) for job_id, state, sequence in changed}
        for one in followers:
            state, sequence = states.get(one.followed, (None, -1))
            if one.key_id not in live:
                one.key_has_ended = True
                one.tell()
            elif one.is_of_batch:
                if (newest := ends.get(one.followed)) != one.sequence:
                    one.sequence = newest or 0
                    one.tell()
            elif state is None or sequence > one.sequence:
                one.has_moved = True
                one.has_ended = state is None or state in TERMINAL_STATES
                one.tell()


_READABLE = ("stream", "none")
