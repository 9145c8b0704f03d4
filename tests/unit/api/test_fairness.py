"""A shared pool goes in turn between keys, and no key takes all of it."""

import asyncio
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from api.core.errors import Problem
from api.core.fairness import FairGate, built


async def hold(gate: FairGate, key: str, order: list[str], release: asyncio.Event) -> None:
    async with gate.turn(key):
        order.append(key)
        await release.wait()


async def settle() -> None:
    for _ in range(20):
        await asyncio.sleep(0)


def test_keys_take_turns_whatever_order_they_came_in() -> None:
    async def trial() -> list[str]:
        gate, order, release = FairGate("test", 1, 1), [], asyncio.Event()
        keys = ["first", *["flood"] * 50, "late", "late"]
        tasks = [asyncio.create_task(hold(gate, key, order, release)) for key in keys]
        await settle()
        release.set()
        await asyncio.gather(*tasks)
        return order

    order = asyncio.run(trial())
    assert order[:6] == ["first", "flood", "late", "flood", "late", "flood"]
    assert len(order) == 53


def test_one_key_leaves_places_to_others() -> None:
    async def trial() -> tuple[list[str], list[str]]:
        gate, order, release = FairGate("test", 4, 3), [], asyncio.Event()
        tasks = [asyncio.create_task(hold(gate, "flood", order, release)) for _ in range(10)]
        await settle()
        before = list(order)
        tasks.append(asyncio.create_task(hold(gate, "other", order, release)))
        await settle()
        after = list(order)
        release.set()
        await asyncio.gather(*tasks)
        return before, after

    assert asyncio.run(trial()) == (["flood"] * 3, ["flood"] * 3 + ["other"])


def test_who_stops_waiting_leaves_no_place_taken() -> None:
    async def trial() -> None:
        gate, release = FairGate("test", 1, 1), asyncio.Event()
        holding = asyncio.create_task(hold(gate, "a", [], release))
        await settle()
        for _ in range(3):
            with pytest.raises(TimeoutError):
                async with gate.turn("b", 0.01):
                    pass
        waiting = [asyncio.create_task(hold(gate, "b", [], release)) for _ in range(3)]
        await settle()
        waiting[0].cancel()
        release.set()
        holding.cancel()  # gives its place to whom the next line takes it from
        waiting[1].cancel()
        await asyncio.gather(holding, *waiting, return_exceptions=True)
        async with gate.turn("c", 1):
            pass

    asyncio.run(trial())


def test_too_many_of_one_key_are_refused_and_others_are_not() -> None:
    async def trial() -> None:
        gate, release = FairGate("test", 1, 1, waiting_per_key=2), asyncio.Event()
        tasks = [asyncio.create_task(hold(gate, "flood", [], release)) for _ in range(3)]
        await settle()
        with pytest.raises(Problem) as refused:
            await gate.acquire("flood")
        assert (refused.value.kind.status, refused.value.kind.code) == (429, "too_many_at_once")
        other = asyncio.create_task(hold(gate, "other", [], release))
        release.set()
        await asyncio.gather(other, *tasks)

    asyncio.run(trial())


def test_a_thread_keeps_its_place_when_nobody_waits_for_it_any_more() -> None:
    async def trial() -> None:
        gate, threads, done = FairGate("test", 1, 1), ThreadPoolExecutor(1), threading.Event()
        with pytest.raises(TimeoutError):
            await gate.run(threads, "a", 0.01, done.wait)
        with pytest.raises(TimeoutError):
            async with gate.turn("b", 0.01):
                pass
        done.set()
        async with gate.turn("b", 10):
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

        task = asyncio.create_task(other())
        made = await built(lambda number: time.sleep(0.001) or number, range(50))
        over.set()
        await task
        assert made == list(range(50))
        return turns

    assert asyncio.run(others_turns()) > 5
