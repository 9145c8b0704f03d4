"""Group commit: what arrives while a group is on its way makes up the next group."""

import asyncio
import contextvars
from collections import OrderedDict, deque
from collections.abc import Awaitable, Callable, Sequence
from typing import Generic, TypeVar

from api.core.errors import Problem
from api.core.metrics import SEMAPHORE_REFUSALS

Item = TypeVar("Item")
Result = TypeVar("Result")


class Groups(Generic[Item, Result]):
    """Hands items on in groups: an item that comes alone at once, others with all that wait.

    There is no timer, so nobody waits for company. Groups are filled round-robin between keys: one
    with many items delays mostly itself. Not for use over several event loops.
    """

    def __init__(
        self,
        name: str,
        work: Callable[[Sequence[Item]], Awaitable[Sequence[Result]]],
        *,
        at_once: int = 2,
        at_most: int = 64,
        waiting_per_key: int = 256,
    ) -> None:
        """`work` gives a result for each item of a group, of at most `at_most`; `at_once` groups
        may be on their way. A Problem that it raises, an outage, is for all that wait now, too;
        any other exception for its group alone."""
        self._name = name
        self._work = work
        self._at_once = at_once
        self._at_most = at_most
        self._waiting_per_key = waiting_per_key
        self._waiting: OrderedDict[str, deque[tuple[Item, asyncio.Future[Result]]]] = OrderedDict()
        self._tasks: set[asyncio.Task[None]] = set()

    async def add(self, key: str, item: Item) -> Result:
        """The item's result.

        Raises:
            Problem: 429 `too_many_at_once` when too many of this key wait already.
            Exception: what `work` raised.
        """
        line = self._waiting.setdefault(key, deque())
        if len(line) >= self._waiting_per_key:
            SEMAPHORE_REFUSALS.labels(self._name).inc()
            raise Problem("too_many_at_once", headers={"Retry-After": "1"})
        result: asyncio.Future[Result] = asyncio.get_running_loop().create_future()
        line.append((item, result))
        if len(self._tasks) < self._at_once:
            # Without the context of this request, which is only the first of many.
            task = asyncio.create_task(self._run(), context=contextvars.Context())
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
        return await result

    async def _run(self) -> None:
        while group := self._take():
            await self._work_on(group)
        # `_tasks` must not name this task while an item that comes now believes it still takes.
        if (task := asyncio.current_task()) is not None:
            self._tasks.discard(task)

    async def _work_on(self, group: Sequence[tuple[Item, asyncio.Future[Result]]]) -> None:
        try:
            results = await self._work([item for item, _ in group])
        except BaseException as error:
            is_for_all = isinstance(error, Problem) or not isinstance(error, Exception)
            while group:
                for _, future in group:
                    if not future.done():
                        future.set_exception(error)
                group = self._take() if is_for_all else []
            if not isinstance(error, Exception):
                raise
            return
        for (_, future), result in zip(group, results, strict=True):
            if not future.done():
                future.set_result(result)

    def _take(self) -> list[tuple[Item, asyncio.Future[Result]]]:
        """The next group: one of each key in turn, without those whose wait was given up."""
        group: list[tuple[Item, asyncio.Future[Result]]] = []
        while self._waiting and len(group) < self._at_most:
            key, line = self._waiting.popitem(last=False)
            item = line.popleft()
            if line:
                self._waiting[key] = line
            if not item[1].done():
                group.append(item)
        return group
