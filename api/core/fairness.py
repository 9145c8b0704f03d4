"""Shared pools serve keys in turn, so that one tenant's load delays only itself."""

import asyncio
import contextlib
import contextvars
import random
import sys
import time
from collections import Counter, OrderedDict, deque
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

from starlette.types import Scope

from api.core.errors import Problem
from api.core.metrics import SEMAPHORE_REFUSALS, SEMAPHORE_WAIT_SECONDS

S = TypeVar("S")
T = TypeVar("T")

acting_key: contextvars.ContextVar[str] = contextvars.ContextVar("acting_key", default="")
"""The id of the key behind the request that this code runs for; empty before authentication."""


@dataclass(eq=False)
class _Waiter:
    """A request that waits for a place."""

    began: float
    """`time.monotonic()`"""
    place: "asyncio.Future[None]"

    def has_place(self) -> bool:
        """Whether the place was given; it is neither when the wait was given up or refused."""
        return self.place.done() and not self.place.cancelled() and not self.place.exception()


class FairSemaphore:
    """The places of one pool: round-robin between keys, and a limit for each.

    A key that asks for more than its limit waits for itself, never in front of others. Not for use
    over several event loops.
    """

    def __init__(self, name: str, places: int, per_key: int, waiting_per_key: int = 256) -> None:
        """`places` in all, `per_key` for one key, which must be 1 or more."""
        self._name = name
        self._free = places
        self._per_key = max(1, min(per_key, places))
        self._waiting_per_key = waiting_per_key
        self._held: Counter[str] = Counter()
        self._waiting: OrderedDict[str, deque[_Waiter]] = OrderedDict()

    @asynccontextmanager
    async def turn(self, key: str, seconds: float | None = None) -> AsyncIterator[None]:
        """Hold a place of the pool.

        Raises:
            Problem: 429 `too_many_at_once` when too many of this key wait already.
            TimeoutError: no place within `seconds`.
        """
        async with asyncio.timeout(seconds):
            await self.acquire(key)
        try:
            yield
        finally:
            self.release(key)

    async def run(
        self, threads: Executor, key: str, seconds: float | None, work: Callable[..., T], *args: Any
    ) -> T:
        """Call on one of the pool's threads. Its place is free when the call has returned, not
        when somebody stops waiting for it.

        Raises:
            Problem: 429 `too_many_at_once` when too many of this key wait already.
            TimeoutError: no answer within `seconds`.
        """
        async with asyncio.timeout(seconds):
            await self.acquire(key)
            return await self.call(threads, key, work, *args)

    async def call(self, threads: Executor, key: str, work: Callable[..., T], *args: Any) -> T:
        """As `run`, with a place that was taken by `acquire`."""
        loop = asyncio.get_running_loop()
        try:
            call = threads.submit(contextvars.copy_context().run, work, *args)
        except BaseException:
            self.release(key)
            raise
        call.add_done_callback(lambda _: self._release_from_thread(loop, key))
        return await asyncio.wrap_future(call)

    def _release_from_thread(self, loop: asyncio.AbstractEventLoop, key: str) -> None:
        with contextlib.suppress(RuntimeError):  # The loop is closed: nobody waits any more.
            loop.call_soon_threadsafe(self.release, key)

    async def acquire(self, key: str) -> None:
        """Take a place, to be given back by `release`.

        Raises:
            Problem: 429 `too_many_at_once` when too many of this key wait already.
        """
        if self._free and self._held[key] < self._per_key and key not in self._waiting:
            self._take(key)
            return
        line = self._waiting.setdefault(key, deque())
        if len(line) >= self._waiting_per_key:
            SEMAPHORE_REFUSALS.labels(self._name).inc()
            raise Problem("too_many_at_once", headers={"Retry-After": "1"})
        waiter = _Waiter(time.monotonic(), asyncio.get_running_loop().create_future())
        line.append(waiter)
        try:
            await waiter.place
        except asyncio.CancelledError:
            if waiter.has_place():
                self.release(key)  # It was given just before the wait was given up.
            else:
                self._leave(key, waiter)
            raise
        finally:
            SEMAPHORE_WAIT_SECONDS.labels(self._name).observe(time.monotonic() - waiter.began)

    def release(self, key: str) -> None:
        """Give a place back."""
        self._free += 1
        self._held[key] -= 1
        if not self._held[key]:
            del self._held[key]
        self._hand_out()

    def refuse_waiting(self, since: float, problem: Callable[[], Problem]) -> None:
        """Let those who began to wait after `since`, by `time.monotonic()`, wait no longer."""
        for key, line in list(self._waiting.items()):
            for waiter in [one for one in line if one.began > since]:
                if not waiter.place.done():
                    waiter.place.set_exception(problem())
                self._leave(key, waiter)

    def _take(self, key: str) -> None:
        self._free -= 1
        self._held[key] += 1

    def _hand_out(self) -> None:
        while self._free and (key := self._next_key()) is not None:
            line = self._waiting.pop(key)
            place = line.popleft().place
            if line:
                self._waiting[key] = line  # Behind all others.
            if place.done():
                continue  # Its wait was given up in this very turn of the loop.
            self._take(key)
            place.set_result(None)

    def _next_key(self) -> str | None:
        """The key that waits and has not reached its limit, and whose last turn is longest ago."""
        return next((key for key in self._waiting if self._held[key] < self._per_key), None)

    def _leave(self, key: str, waiter: _Waiter) -> None:
        line = self._waiting.get(key, deque())
        with contextlib.suppress(ValueError):
            line.remove(waiter)
        if not line:
            self._waiting.pop(key, None)


_OPENINGS = 4

_CROWD = 4096
"""Requests that may wait where a limit of another kind or the first's answer lets them pass."""


class FairSemaphores:
    """One semaphore for each pool that tenants share in this process."""

    def __init__(self, connections: int, decoders: int) -> None:
        """`connections` to Postgres, `decoders` of images: the sizes of these pools."""
        reserved = 2 if connections >= 4 else 0
        tenants = connections - reserved
        self.database = FairSemaphore("database", tenants, tenants - max(1, tenants // 3))
        """Tenants' transactions. Two connections are left to the lookups of keys below."""
        self.known_keys = FairSemaphore("known_keys", 1, 1, _CROWD)
        """Lookups of keys that were live a moment ago, by key."""
        self.unknown_keys = FairSemaphore("unknown_keys", 1, 1, _CROWD)
        """Lookups of all other keys, by address: a flood of them takes one connection."""
        self.submissions = FairSemaphore("submissions", 1024, 1)
        """Submissions of keys with quotas, one at a time for each: they would wait for each other
        in Postgres, each with a connection."""
        self.lists = FairSemaphore("lists", 1024, 1)
        """Long lists, one at a time for each key: their rows are read on the event loop."""
        self.decoders = FairSemaphore("decoders", decoders, decoders - 1, waiting_per_key=32)
        self.filters = FairSemaphore("filters", 1, 1)
        """Questions to the operator's filters, which answer one after the other."""
        self.storage = FairSemaphore("storage", 32, 24)
        """Calls of object storage, each on a thread."""
        self.event_loop = FairSemaphore("event_loop", 1, 1, sys.maxsize)
        """Requests that begin, one in each round of the event loop: see `api.core.auth.InTurn`."""
        self.openings = FairSemaphore("openings", _OPENINGS, _OPENINGS // 2, _CROWD)
        """Waits and event streams, from their key to where they only wait: hundreds that come at
        once would stand before every other request in the event loop."""

    def database_failed(self, answered: float, problem: Callable[[], Problem]) -> None:
        """Refuse those who would only wait to fail: it last answered before they began to wait.

        `answered` is in the time of `time.monotonic()`.
        """
        for semaphore in (
            *(self.database, self.known_keys, self.unknown_keys),
            *(self.submissions, self.lists, self.openings),
        ):
            semaphore.refuse_waiting(answered, problem)


_THREADS = 8
_threads = ThreadPoolExecutor(_THREADS, thread_name_prefix="work")
_thread_semaphore = FairSemaphore("threads", _THREADS, _THREADS // 2)

PLACE = "darkroom.place"
"""Where a request's scope names the `OpenAnswers` that it is counted in."""


class OpenAnswers:
    """The answers of one kind that a process holds open, and whose they are.

    A key may hold `per_key`, and never more than there are places left: a few busy keys fill the
    process only in part, so that a new one finds room.
    """

    def __init__(
        self, refusal: Literal["too_many_streams", "too_many_waits"], per_key: int, at_most: int
    ) -> None:
        self._refusal = refusal
        self._per_key = per_key
        self._at_most = at_most
        self._held: Counter[str] = Counter()

    @contextmanager
    def hold(self, key_id: str, scope: Scope) -> Iterator[None]:
        """Count a request against its key for as long as it lasts, if it is not counted yet.

        Raises:
            Problem: 429, of the code that this was made with.
        """
        if scope.get(PLACE) is self:
            yield
            return
        if self._held[key_id] >= min(self._per_key, self._at_most - self._held.total()):
            # Not all who are refused together are to come back together.
            raise Problem(self._refusal, headers={"Retry-After": str(random.randint(5, 15))})
        self._held[key_id] += 1
        try:
            yield
        finally:
            self._held[key_id] -= 1
            self._held += Counter()  # drops keys that hold nothing


async def on_thread(work: Callable[..., T], *args: Any) -> T:
    """As `asyncio.to_thread`, in turn between keys: for what a request has to compute.

    Raises:
        Problem: 429 `too_many_at_once` when too many of this key wait already.
    """
    return await _thread_semaphore.run(_threads, acting_key.get(), None, work, *args)


_SLICE_SECONDS = 0.002
_builders = FairSemaphore("pages", 1, 1)


async def built(work: Callable[[S], T], rows: Iterable[S]) -> list[T]:
    """`work` of each row of a list, which may be long: others get at the event loop every few ms.

    One list is built at a time, in turn between keys. On threads, several would hold up the event
    loop for longer: each time it comes back from a system call it would wait for all of them.

    Raises:
        Problem: 429 `too_many_at_once` when too many of this key wait already.
    """
    items: list[T] = []
    async with _builders.turn(acting_key.get()):
        ends = time.perf_counter() + _SLICE_SECONDS
        for row in rows:
            items.append(work(row))
            if time.perf_counter() > ends:
                await asyncio.sleep(0)
                ends = time.perf_counter() + _SLICE_SECONDS
    return items
