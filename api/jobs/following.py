"""Follow jobs: one reader of Redis and one look at the ledger, for all who wait in this process.

Redis tells of a job's events as they come; what it tells is a hint. One blocking XREAD, on one
connection, covers the streams of all jobs that are followed. The ledger is asked every few seconds
about all of them in one query, for an end that no event told of, and whether the keys that follow
are still good.
"""

import asyncio
import contextlib
import random
from collections import defaultdict
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any
from uuid import UUID

from redis.asyncio import Redis
from redis.exceptions import RedisError, ResponseError

from api.core.errors import Problem
from api.core.publisher import Circuit, RedisDown
from api.jobs import service
from api.jobs.events import START, StreamEvent, entries, order
from shared.core import broker, tenants
from shared.core.ids import new_id
from shared.core.logging import get_logger
from shared.jobs.queries import lookups
from shared.jobs.state import TERMINAL_STATES

if TYPE_CHECKING:
    from api.context import Resources
    from api.core.principal import Principal
    from api.jobs.schemas import Job

_log = get_logger(__name__)

_LEDGER_SECONDS = 5.0
"""Between looks at the ledger; also the longest that a revoked key follows on."""
_LEDGER_SECONDS_ALONE = 1.0
"""The same while Redis is away."""
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
    """Who follows one job: what it knows of it, and what there is to tell."""

    job_id: UUID
    key_id: str
    position: str
    """The Redis id of the newest entry that was read for it."""
    sequence: int
    """Of the newest state of the job that it knows."""
    events: list[StreamEvent] = field(default_factory=list)
    """Read, and not taken yet."""
    has_moved: bool = False
    """The ledger knows of a newer state."""
    has_ended: bool = False
    """In that state the job has ended, or it is gone."""
    key_has_ended: bool = False
    has_left: bool = False
    """Its client is gone."""
    _news: asyncio.Event = field(default_factory=asyncio.Event)

    def tell(self) -> None:
        """Have it look at what has changed."""
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
        """Whether the ledger has moved since the last call."""
        moved, self.has_moved = self.has_moved, False
        return moved


class Following:
    """All followers of jobs in this process."""

    def __init__(self, redis: Redis, quick: Redis, circuit: Circuit) -> None:
        """`redis` is for blocking reads, `quick` for waking them."""
        self._redis = redis
        self._quick = quick
        self._circuit = circuit
        self._followers: dict[UUID, set[Follower]] = defaultdict(set)
        self._some = asyncio.Event()
        """Set while anybody follows."""
        self._redis_failed = asyncio.Event()
        self._unreadable: set[UUID] = set()
        """Jobs under whose key lies something else than a stream."""
        self._reading = False
        self._waking: asyncio.Task[None] | None = None
        self._wake_key = broker.wake_key(new_id().hex)
        self._woken = START
        self._turns = asyncio.Semaphore(_READS_AT_ONCE)

    @asynccontextmanager
    async def running(self, resources: "Resources") -> AsyncIterator[None]:
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
        follower = Follower(job_id, key_id, position, sequence)
        self._followers[job_id].add(follower)
        self._some.set()
        self.listen()
        try:
            yield follower
        finally:
            self._followers[job_id].discard(follower)
            if not self._followers[job_id]:
                del self._followers[job_id]
                self._unreadable.discard(job_id)
            if not self._followers:
                self._some.clear()

    async def read_job(self, resources: "Resources", principal: "Principal", job_id: str) -> "Job":
        """The job as it stands. Of many who ask, a few are served at a time.

        Raises:
            Problem: 404 for an unknown job, 503 when Postgres is away.
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
        if self._reading and self._waking is None and not self._circuit.is_open:
            self._waking = asyncio.create_task(self._wake())

    async def _wake(self) -> None:
        pipeline = self._quick.pipeline(transaction=False)
        pipeline.xadd(self._wake_key, {"at": ""}, maxlen=1, approximate=False)
        pipeline.expire(self._wake_key, 60)
        try:
            await self._circuit.call(pipeline.execute())
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
            except (RedisError, OSError, ValueError) as error:
                if isinstance(error, ResponseError) and await self._set_aside():
                    continue
                self._redis_failed.set()
                _log.warning("events cannot be read", error=type(error).__name__)
                await asyncio.sleep(_RETRY_SECONDS)

    async def _read_once(self) -> None:
        asked: dict[Any, Any] = {self._wake_key: self._woken}
        jobs = {}
        for job_id, followers in self._followers.items():
            eager = [one.position for one in followers if len(one.events) < _ENOUGH]
            if eager and job_id not in self._unreadable:
                key = broker.events_key(job_id)
                jobs[key] = job_id
                asked[key] = min(eager, key=order)
        self._reading = True
        try:
            answer: Any = await self._redis.xread(
                asked, count=_AT_ONCE, block=int(_BLOCK_SECONDS * 1000)
            )
        finally:
            self._reading = False
        self._redis_failed.clear()
        for key, raw in answer or ():
            if key == self._wake_key:
                self._woken = raw[-1][0]
            else:
                self._hand_out(jobs[key], entries(raw), raw[-1][0])
        await asyncio.sleep(len(asked) * _PER_STREAM)

    def _hand_out(self, job_id: UUID, events: list[StreamEvent], newest: str) -> None:
        for follower in self._followers.get(job_id, ()):
            if len(follower.events) >= _ENOUGH or order(newest) <= order(follower.position):
                continue
            new = [event for event in events if order(event.id) > order(follower.position)]
            follower.position = newest  # past those, too, that are no events
            if new:
                follower.events += new
                follower.tell()

    async def _set_aside(self) -> bool:
        """Leave out keys that are no streams; whether there are any. Their jobs have the ledger."""
        jobs = list(self._followers)
        pipeline = self._redis.pipeline(transaction=False)
        for job_id in jobs:
            pipeline.type(broker.events_key(job_id))
        try:
            kinds = await pipeline.execute()
        except (RedisError, OSError):
            return False
        wrong = {job for job, kind in zip(jobs, kinds, strict=True) if kind not in _READABLE}
        new = wrong - self._unreadable
        self._unreadable |= wrong
        if new:
            _log.warning("keys of events are no streams", count=len(new))
        return bool(new)

    # The ledger ------------------------------------------------------------------------------

    async def _watch(self, resources: "Resources") -> None:
        while True:
            await self._some.wait()
            alone = self._redis_failed.is_set()
            seconds = _LEDGER_SECONDS_ALONE if alone else _LEDGER_SECONDS
            pause = seconds * random.uniform(0.8, 1.0)
            if alone:
                await asyncio.sleep(pause)
            else:
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(self._redis_failed.wait(), pause)
            try:
                await self._look(resources)
            except Problem:
                pass  # Postgres is away: who waits goes on waiting.
            except Exception as error:
                _log.error("jobs could not be looked at", error=repr(error))

    async def _look(self, resources: "Resources") -> None:
        followers = [one for group in self._followers.values() for one in group]
        jobs = list({one.job_id for one in followers})
        keys = list({one.key_id for one in followers})
        if not followers:
            return
        async with resources.transaction() as session:
            found = (await session.execute(lookups.read_states(jobs))).all()
            live = set(await session.scalars(tenants.find_live(keys, datetime.now(UTC))))
        states = {job_id: (state, sequence) for job_id, state, sequence in found}
        for one in followers:
            state, sequence = states.get(one.job_id, (None, -1))
            if one.key_id not in live:
                one.key_has_ended = True
                one.tell()
            elif state is None or sequence > one.sequence:
                one.has_moved = True
                one.has_ended = state is None or state in TERMINAL_STATES
                one.tell()


_READABLE = ("stream", "none")
