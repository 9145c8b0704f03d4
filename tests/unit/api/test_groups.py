"""Group commit: those that wait go together, in turn between keys; one alone does not wait."""

import asyncio
from collections.abc import Sequence

import pytest

from api.core.errors import Problem
from api.core.groups import Groups


class Line:
    """Groups whose work waits to be let on."""

    def __init__(self, **limits: int) -> None:
        self.done: list[list[str]] = []
        self.open = asyncio.Event()
        self.groups: Groups[str, str] = Groups("test", self._work, **limits)

    async def _work(self, items: Sequence[str]) -> list[str]:
        self.done.append(list(items))
        await self.open.wait()
        return [item.upper() for item in items]

    async def put(self, *items: str) -> list[asyncio.Task[str]]:
        """Add items, each for the key in front of its number, one behind the other."""
        tasks = [asyncio.create_task(self.groups.add(item[0], item)) for item in items]
        for _ in range(20):
            await asyncio.sleep(0)
        return tasks


def test_one_goes_at_once_and_those_behind_it_together() -> None:
    async def trial() -> tuple[list[list[str]], list[str]]:
        line = Line(at_once=1)
        tasks = await line.put("a1")
        assert line.done == [["a1"]]
        tasks += await line.put("a2", "a3", "b1")
        line.open.set()
        return line.done, await asyncio.gather(*tasks)

    done, results = asyncio.run(trial())
    assert done == [["a1"], ["a2", "b1", "a3"]]
    assert results == ["A1", "A2", "A3", "B1"]


def test_a_full_group_has_something_of_every_key() -> None:
    async def trial() -> list[list[str]]:
        line = Line(at_once=1, at_most=3)
        tasks = await line.put("x1")
        tasks += await line.put(*(f"a{number}" for number in range(5)), "b1", "c1")
        line.open.set()
        await asyncio.gather(*tasks)
        return line.done

    assert asyncio.run(trial()) == [["x1"], ["a0", "b1", "c1"], ["a1", "a2", "a3"], ["a4"]]


def test_a_key_that_waits_too_much_is_refused_and_others_are_not() -> None:
    async def trial() -> None:
        line = Line(at_once=1, waiting_per_key=2)
        tasks = await line.put("x1")
        tasks += await line.put("a1", "a2", "a3", "b1")
        with pytest.raises(Problem, match="too_many_at_once"):
            await tasks[3]
        line.open.set()
        assert await asyncio.gather(*tasks[:3], tasks[4]) == ["X1", "A1", "A2", "B1"]

    asyncio.run(trial())


def test_whoever_gives_up_takes_no_place_and_the_rest_go_on() -> None:
    async def trial() -> None:
        line = Line(at_once=1)
        tasks = await line.put("x1")
        tasks += await line.put("a1", "a2")
        tasks[1].cancel()
        line.open.set()
        assert await tasks[2] == "A2"
        assert line.done == [["x1"], ["a2"]]

    asyncio.run(trial())


def test_an_outage_refuses_those_that_wait_and_not_those_that_come_later() -> None:
    async def trial() -> None:
        fails, goes_on = True, asyncio.Event()

        async def work(items: Sequence[str]) -> list[str]:
            await goes_on.wait()
            if fails:
                raise Problem("database_unavailable", "It is away.")
            return list(items)

        groups: Groups[str, str] = Groups("test", work, at_once=1, at_most=1)
        tasks = [asyncio.create_task(groups.add("a", name)) for name in ("one", "two")]
        await asyncio.sleep(0)
        goes_on.set()
        for task in tasks:
            with pytest.raises(Problem, match="database_unavailable"):
                await task
        fails = False
        assert await groups.add("a", "three") == "three"

    asyncio.run(trial())


def test_a_fault_fails_its_group_and_nobody_behind_it() -> None:
    async def trial() -> list[str | BaseException]:
        goes_on = asyncio.Event()

        async def work(items: Sequence[str]) -> list[str]:
            await goes_on.wait()
            if "a1" in items:
                raise ValueError("a1")
            return list(items)

        groups: Groups[str, str] = Groups("test", work, at_once=1, at_most=1)
        tasks = [asyncio.create_task(groups.add("a", name)) for name in ("a1", "a2", "a3")]
        await asyncio.sleep(0)
        goes_on.set()
        return await asyncio.gather(*tasks, return_exceptions=True)

    fault, *others = asyncio.run(trial())
    assert isinstance(fault, ValueError)
    assert others == ["a2", "a3"]
