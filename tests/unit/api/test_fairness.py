"""A shared pool goes in turn between keys, and no key takes all of it."""

import asyncio
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from types import SimpleNamespace
from typing import Any

import pytest
from starlette.types import Message, Receive, Scope, Send

from api.core.auth import InTurn
from api.core.errors import Problem
from api.core.fairness import FairSemaphore, FairSemaphores, OpenAnswers, built
from api.core.principal import KeyCache
from api.core.streams import Openings
from shared.core.ids import new_id
from shared.core.keys import GeneratedKey, new_key
from shared.core.tenants import ApiKey


async def hold(
    semaphore: FairSemaphore, key: str, order: list[str], release: asyncio.Event
) -> None:
    async with semaphore.turn(key):
        order.append(key)
        await release.wait()


async def let_others_run() -> None:
    for _ in range(20):
        await asyncio.sleep(0)


def test_keys_take_turns_whatever_order_they_came_in() -> None:
    async def trial() -> list[str]:
        semaphore, release = FairSemaphore("test", 1, 1), asyncio.Event()
        order: list[str] = []
        keys = ["first", *["flood"] * 50, "late", "late"]
        tasks = [asyncio.create_task(hold(semaphore, key, order, release)) for key in keys]
        await let_others_run()
        release.set()
        await asyncio.gather(*tasks)
        return order

    order = asyncio.run(trial())
    assert order[:6] == ["first", "flood", "late", "flood", "late", "flood"]
    assert len(order) == 53


def test_one_key_leaves_places_to_others() -> None:
    async def trial() -> tuple[list[str], list[str]]:
        semaphore, release = FairSemaphore("test", 4, 3), asyncio.Event()
        order: list[str] = []
        tasks = [asyncio.create_task(hold(semaphore, "flood", order, release)) for _ in range(10)]
        await let_others_run()
        before = list(order)
        tasks.append(asyncio.create_task(hold(semaphore, "other", order, release)))
        await let_others_run()
        after = list(order)
        release.set()
        await asyncio.gather(*tasks)
        return before, after

    assert asyncio.run(trial()) == (["flood"] * 3, ["flood"] * 3 + ["other"])


def test_who_stops_waiting_leaves_no_place_taken() -> None:
    async def trial() -> None:
        semaphore, release = FairSemaphore("test", 1, 1), asyncio.Event()
        holding = asyncio.create_task(hold(semaphore, "a", [], release))
        await let_others_run()
        for _ in range(3):
            with pytest.raises(TimeoutError):
                async with semaphore.turn("b", 0.01):
                    pass
        waiting = [asyncio.create_task(hold(semaphore, "b", [], release)) for _ in range(3)]
        await let_others_run()
        waiting[0].cancel()
        release.set()
        holding.cancel()  # gives its place to whom the next line takes it from
        waiting[1].cancel()
        await asyncio.gather(holding, *waiting, return_exceptions=True)
        async with semaphore.turn("c", 1):
            pass

    asyncio.run(trial())


def test_who_leaves_in_the_moment_of_being_given_a_place_gives_it_back() -> None:
    async def trial() -> None:
        semaphore = FairSemaphore("test", 1, 1)
        await semaphore.acquire("a")
        waiting = asyncio.create_task(semaphore.acquire("b"))
        await let_others_run()
        semaphore.release("a")
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        async with semaphore.turn("c", 1):
            pass

    asyncio.run(trial())


def test_busy_keys_leave_open_answers_to_new_ones_and_none_is_beyond_the_last() -> None:
    answers, held = OpenAnswers("too_many_waits", per_key=4, at_most=10), Counter[str]()

    def hold_all(stack: ExitStack, key: str) -> None:
        while True:
            stack.enter_context(answers.hold(key, {}))
            held[key] += 1

    with ExitStack() as stack:
        for key in "abcde":
            with pytest.raises(Problem, match="too_many_waits"):
                hold_all(stack, key)
    assert held == {"a": 4, "b": 3, "c": 2, "d": 1}


def test_those_who_began_to_wait_after_a_moment_can_be_refused() -> None:
    async def trial() -> None:
        semaphore, release = FairSemaphore("test", 1, 1), asyncio.Event()
        order: list[str] = []
        tasks = [asyncio.create_task(hold(semaphore, key, order, release)) for key in "ab"]
        await let_others_run()
        moment = time.monotonic()
        late = [asyncio.create_task(hold(semaphore, key, order, release)) for key in "abc"]
        await let_others_run()
        semaphore.refuse_waiting(moment, lambda: Problem("database_unavailable"))
        late[2].cancel()  # at the same moment
        refused = await asyncio.gather(*late, return_exceptions=True)
        assert [type(one) for one in refused] == [Problem, Problem, asyncio.CancelledError]
        release.set()
        await asyncio.gather(*tasks)
        assert order == ["a", "b"]
        async with semaphore.turn("d", 1):
            pass

    asyncio.run(trial())


def test_too_many_of_one_key_are_refused_and_others_are_not() -> None:
    async def trial() -> None:
        semaphore, release = FairSemaphore("test", 1, 1, waiting_per_key=2), asyncio.Event()
        tasks = [asyncio.create_task(hold(semaphore, "flood", [], release)) for _ in range(3)]
        await let_others_run()
        with pytest.raises(Problem) as refused:
            await semaphore.acquire("flood")
        assert (refused.value.kind.status, refused.value.kind.code) == (429, "too_many_at_once")
        other = asyncio.create_task(hold(semaphore, "other", [], release))
        release.set()
        await asyncio.gather(other, *tasks)

    asyncio.run(trial())


def test_a_thread_keeps_its_place_when_nobody_waits_for_it_any_more() -> None:
    async def trial() -> None:
        semaphore, threads = FairSemaphore("test", 1, 1), ThreadPoolExecutor(1)
        begun, done = threading.Event(), threading.Event()

        def work() -> None:
            begun.set()
            done.wait()

        task = asyncio.create_task(semaphore.run(threads, "a", None, work))
        await asyncio.to_thread(begun.wait)  # one that has not begun would not begin any more
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        with pytest.raises(TimeoutError):
            async with semaphore.turn("b", 0.01):
                pass
        done.set()
        async with semaphore.turn("b", 60):
            pass

    asyncio.run(trial())


def test_a_long_list_leaves_the_event_loop_to_others_while_it_is_built() -> None:
    async def others_turns() -> int:
        turns = 0
        over = asyncio.Event()

        async def other() -> None:
            nonlocal turns
            while not over.is_set():
                turns += 1
                await asyncio.sleep(0)

        def slowly(number: int) -> int:
            time.sleep(0.001)
            return number

        task = asyncio.create_task(other())
        made = await built(slowly, range(50))
        over.set()
        await task
        assert made == list(range(50))
        return turns

    assert asyncio.run(others_turns()) > 5


# The event loop is a shared pool: a storm of cheap requests begins one in each of its rounds


CONNECTIONS = 40
ROUNDS = 12
"""Of the event loop: what a submission waits for in Postgres and Redis."""


class Loop:
    """The middleware before an application that answers at once, or after some rounds."""

    def __init__(self) -> None:
        self.answers = 0
        self.app = InTurn(self._app)
        self.keys = KeyCache()
        self.resources = SimpleNamespace(keys=self.keys, semaphores=FairSemaphores(8, 2))

    def known_key(self) -> GeneratedKey:
        made = new_key()
        self.keys.put(
            ApiKey(id=made.id, tenant_id=new_id(), scopes=["jobs"], secret_hash=made.secret_hash)
        )
        return made

    async def ask(self, path: str, token: str, address: str = "10.0.0.1") -> None:
        scope: dict[str, Any] = {
            "type": "http",
            "path": path,
            "headers": [(b"authorization", f"Bearer {token}".encode())],
            "client": (address, 1),
            "app": SimpleNamespace(state=SimpleNamespace(resources=self.resources)),
        }
        await self.app(scope, _nothing, _nothing)

    async def _app(self, scope: Scope, _receive: Receive, _send: Send) -> None:
        if scope["path"] == "/slow":
            for _ in range(ROUNDS):
                await asyncio.sleep(0)
        else:
            self.answers += 1

    async def connection(self, token: str) -> None:
        while True:
            await self.ask("/cheap", token)
            await asyncio.sleep(0)  # the answer reaches the client, the next request us


async def _nothing(*_: Any) -> Any:
    raise AssertionError("neither a body nor an answer is asked for")


@pytest.mark.parametrize("storm_of", ["a key", "a stranger", "forged keys"])
def test_a_storm_gets_one_answer_in_each_round_of_anothers_request(storm_of: str) -> None:
    async def trial() -> None:
        loop = Loop()
        neighbour, flood = loop.known_key(), loop.known_key()
        forged = f"drk_{neighbour.id}_{flood.key.rpartition('_')[2]}"
        token = {"a key": flood.key, "a stranger": "", "forged keys": forged}[storm_of]
        storm = [asyncio.create_task(loop.connection(token)) for _ in range(CONNECTIONS)]
        for _ in range(3 * CONNECTIONS):
            await asyncio.sleep(0)  # the storm stands
        before = loop.answers
        await loop.ask("/slow", neighbour.key)
        assert loop.answers - before <= ROUNDS + 4
        for task in storm:
            task.cancel()
        await asyncio.gather(*storm, return_exceptions=True)

    asyncio.run(trial())


def test_a_request_that_is_alone_begins_at_once() -> None:
    async def trial() -> None:
        loop = Loop()
        asking = asyncio.create_task(loop.ask("/cheap", ""))
        await asyncio.sleep(0)
        assert asking.done()
        assert loop.answers == 1

    asyncio.run(trial())


# --- Of a crowd of waits and streams a few are opened at a time, in turn between keys ---


LIMIT = 20


class Crowd:
    """The middleware before an application that opens what it is told to."""

    def __init__(self) -> None:
        self.inside: list[str] = []
        self.may_open = asyncio.Event()
        self.may_end = asyncio.Event()
        self.keys = KeyCache()
        self.app = Openings(self._app)
        self.resources = SimpleNamespace(
            keys=self.keys,
            semaphores=FairSemaphores(8, 2),
            waits=OpenAnswers("too_many_waits", LIMIT, 1000),
            streams=OpenAnswers("too_many_streams", LIMIT, 1000),
        )

    def key(self) -> GeneratedKey:
        made = new_key()
        self.keys.put(
            ApiKey(id=made.id, tenant_id=new_id(), scopes=["jobs"], secret_hash=made.secret_hash)
        )
        return made

    async def ask(self, key: GeneratedKey, path: str = "/v1/jobs/job_1/events") -> int:
        headers = [(b"authorization", f"Bearer {key.key}".encode()), (b"prefer", b"wait=9")]
        scope: dict[str, Any] = {
            "type": "http",
            "method": "GET",
            "path": path,
            "headers": headers,
            "client": ("127.0.0.1", 1),
            "app": SimpleNamespace(state=SimpleNamespace(resources=self.resources)),
            "key": key.id,
        }
        statuses = []

        async def send(message: Message) -> None:
            if message["type"] == "http.response.start":
                statuses.append(message["status"])

        await self.app(scope, _no_body, send)
        return int(statuses[0])

    async def _app(self, scope: Scope, _receive: Receive, send: Send) -> None:
        self.inside.append(scope["key"])
        await self.may_open.wait()
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await self.may_end.wait()
        await send({"type": "http.response.body", "body": b""})


async def _no_body() -> Message:
    return {"type": "http.request", "body": b"", "more_body": False}


def test_one_key_opens_few_at_once_and_another_is_let_in() -> None:
    async def trial() -> None:
        crowd = Crowd()
        flood, other = crowd.key(), crowd.key()
        tasks = [asyncio.create_task(crowd.ask(flood)) for _ in range(LIMIT)]
        await let_others_run()
        assert crowd.inside == [flood.id] * 2
        tasks.append(asyncio.create_task(crowd.ask(other)))
        await let_others_run()
        assert crowd.inside == [flood.id, flood.id, other.id]
        crowd.may_open.set()  # who is open takes no turn from those that are not
        for _ in range(LIMIT):
            await let_others_run()
        assert len(crowd.inside) == LIMIT + 1
        crowd.may_end.set()
        assert await asyncio.gather(*tasks) == [200] * (LIMIT + 1)

    asyncio.run(trial())


def test_those_beyond_the_limit_are_refused_while_the_others_wait_for_their_turn() -> None:
    async def trial() -> None:
        crowd = Crowd()
        flood = crowd.key()
        for path in ("/v1/jobs/job_1/events", "/v1/jobs/job_1"):
            tasks = [asyncio.create_task(crowd.ask(flood, path)) for _ in range(3 * LIMIT)]
            await let_others_run()
            refused = [task.result() for task in tasks if task.done()]
            assert refused == [429] * (2 * LIMIT)
            crowd.may_open.set()
            crowd.may_end.set()
            assert sorted(await asyncio.gather(*tasks)) == [200] * LIMIT + [429] * (2 * LIMIT)
            assert len(crowd.inside) == LIMIT
            crowd.inside.clear()
            crowd.may_open.clear()
            crowd.may_end.clear()

    asyncio.run(trial())
