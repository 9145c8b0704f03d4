"""Shared pools are handed out in turn between keys, so that one tenant's load is its own wait."""

import asyncio
import contextlib
import contextvars
import time
from collections import Counter, OrderedDict, deque
from collections.abc import AsyncIterator, Callable, Iterable
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import asynccontextmanager
from typing import Any, TypeVar

from api.core.errors import Problem
from api.core.metrics import GATE_REFUSALS, GATE_WAIT_SECONDS

S = TypeVar("S")


T = TypeVar("T")


acting_key: contextvars.ContextVar[str] = contextvars.ContextVar("acting_key", default="")
"""The id of the key behind the request that this code runs for; empty before authentication."""


class FairGate:
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
        self._waiting: OrderedDict[str, deque[asyncio.Future[None]]] = OrderedDict()

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
        loop = asyncio.get_running_loop()
        async with asyncio.timeout(seconds):
            await self.acquire(key)
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
            GATE_REFUSALS.labels(self._name).inc()
            raise Problem("too_many_at_once", headers={"Retry-After": "1"})
        began = time.perf_counter()
        place = asyncio.get_running_loop().create_future()
        line.append(place)
        try:
            await place
        except asyncio.CancelledError:
            if place.done() and not place.cancelled():
                self.release(key)  # It was given just before the wait was given up.
            else:
                self._leave(key, place)
            raise
        finally:
            GATE_WAIT_SECONDS.labels(self._name).observe(time.perf_counter() - began)

    def release(self, key: str) -> None:
        """Give a place back."""
        self._free += 1
        self._held[key] -= 1
        if not self._held[key]:
            del self._held[key]
        self._hand_out()

    def _take(self, key: str) -> None:
        self._free -= 1
        self._held[key] += 1

    def _hand_out(self) -> None:
        while self._free and (key := self._next_key()) is not None:
            line = self._waiting.pop(key)
            place = line.popleft()
            if line:
                self._waiting[key] = line  # Behind all others.
            if place.done():
                continue  # Its wait was given up in this very turn of the loop.
            self._take(key)
            place.set_result(None)

    def _next_key(self) -> str | None:
        """The key that waits and has not reached its limit, and whose last turn is longest ago."""
        return next((key for key in self._waiting if self._held[key] < self._per_key), None)

    def _leave(self, key: str, place: "asyncio.Future[None]") -> None:
        line = self._waiting.get(key, deque())
        with contextlib.suppress(ValueError):
            line.remove(place)
        if not line:
            self._waiting.pop(key, None)


_OPENINGS = 4


_CROWD = 4096
"""Requests that may wait where a limit of another kind or the first's answer lets them pass."""


class Gates:
    """One gate for each pool that tenants share in this process."""

    def __init__(self, connections: int, decoders: int) -> None:
        """`connections` to Postgres, `decoders` of images: the sizes of these pools."""
        reserved = 2 if connections >= 4 else 0
        tenants = connections - reserved
        self.database = FairGate("database", tenants, tenants - max(1, tenants // 3))
        """Tenants' transactions. Two connections are left to the lookups of keys below."""
        self.known_keys = FairGate("known_keys", 1, 1, _CROWD)
        """Lookups of keys that were live a moment ago, by key."""
        self.unknown_keys = FairGate("unknown_keys", 1, 1, _CROWD)
        """Lookups of all other keys, by address: a flood of them takes one connection."""
        self.submissions = FairGate("submissions", 1024, 1)
        """Submissions of keys with quotas, one at a time for each: they would wait for each other
        in Postgres, each with a connection."""
        self.lists = FairGate("lists", 1024, 1)
        """Long lists, one at a time for each key: their rows are read on the event loop."""
        self.decoders = FairGate("decoders", decoders, decoders - 1, waiting_per_key=32)
        self.storage = FairGate("storage", 32, 24)
        """Calls of object storage, each on a thread."""
        self.openings = FairGate("openings", _OPENINGS, _OPENINGS // 2, _CROWD)
        """Waits and event streams, from their key to where they only wait: hundreds that come at
        once would stand before every other request in the event loop."""


_THREADS = 8


_threads = ThreadPoolExecutor(_THREADS, thread_name_prefix="work")


_thread_turns = FairGate("threads", _THREADS, _THREADS // 2)


async def on_thread(work: Callable[..., T], *args: Any) -> T:
    """As `asyncio.to_thread`, in turn between keys: for what a request has to compute.

    Raises:
        Problem: 429 `too_many_at_once` when too many of this key wait already.
    """
    return await _thread_turns.run(_threads, acting_key.get(), None, work, *args)


_SLICE_SECONDS = 0.002


_builders = FairGate("pages", 1, 1)


async def built(work: Callable[[S], T], rows: Iterable[S]) -> list[T]:
    """`work` of each row of a list, which may be long: others get at the event loop every few ms.

    One list is built at a time, in turn between keys. On threads, several would hold up the event
    loop for longer: each time it comes back from a system call it would wait for all of them.

    Raises:
        Problem: 429 `too_many_at_once` when too many of this key wait already.
    """
    made: list[T] = []
    async with _builders.turn(acting_key.get()):
        ends = time.perf_counter() + _SLICE_SECONDS
        for row in rows:
            made.append(work(row))
            if time.perf_counter() > ends:
                await asyncio.sleep(0)
                ends = time.perf_counter() + _SLICE_SECONDS
    return made
