"""Filters that take long for a batch: they hold up no other file, and there is an end to it."""

import asyncio
import tempfile
from datetime import UTC, datetime
from types import SimpleNamespace
from typing import Any

import pytest

from api.batches import validation
from api.batches.validation import Validated
from shared.core.errors import FilterUnavailable
from shared.core.filters import NOTHING
from shared.core.ids import new_id


class _Filters:
    """Stand for those of an API: they fill up the time and note whether a turn was free."""

    may_look = True

    def __init__(self) -> None:
        self.free: list[bool] = []
        self.clock = 0.0
        """Seconds, of which a question takes two."""

    def monotonic(self) -> float:
        return self.clock

    async def check(self, resources: Any, prompts: list[Any]) -> list[Any]:
        self.free.append(not validation.turns.locked())
        self.clock += 2
        await asyncio.sleep(0.05)
        return [NOTHING] * len(prompts)

    def unchecked(self) -> None:
        raise FilterUnavailable("It took too long.")


def test_filters_are_asked_without_the_turn_and_not_for_ever(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(validation, "_FILTER_SECONDS", 1.0)
    monkeypatch.setattr(validation, "turns", asyncio.Semaphore(1))
    monkeypatch.setattr(validation, "prompt_of", lambda plan, _: plan)
    filters = _Filters()
    monkeypatch.setattr(validation, "time", filters)
    resources: Any = SimpleNamespace(get=lambda _: filters)
    principal: Any = SimpleNamespace(tenant_id=new_id())
    parts: Any = [SimpleNamespace(jobs=[SimpleNamespace(plan=number) for number in range(40)])]

    async def check() -> Validated:
        with tempfile.TemporaryFile() as rows:
            validated = Validated(
                batch_id=new_id(), tenant_id=new_id(), now=datetime.now(UTC), rows=rows
            )
            async with validation.turns:
                found = await validation._check_prompts(resources, principal, parts, validated)
                assert validation.turns.locked()
            assert len(found) == 40
        return validated

    validated = asyncio.run(check())
    assert filters.free == [True]
    assert validated.is_refused
    assert [error.code for error in validated.report.first] == ["filters_too_slow"]


def test_the_wait_for_a_turn_is_none_of_the_filters_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(validation, "turns", asyncio.Semaphore(1))
    monkeypatch.setattr(validation, "prompt_of", lambda plan, _: plan)
    have_answered = asyncio.Event()

    class Filters(_Filters):
        async def check(self, resources: Any, prompts: list[Any]) -> list[Any]:
            findings = await super().check(resources, prompts)
            have_answered.set()
            return findings

    filters = Filters()
    monkeypatch.setattr(validation, "time", filters)
    resources: Any = SimpleNamespace(get=lambda _: filters)
    principal: Any = SimpleNamespace(tenant_id=new_id())
    parts: Any = [SimpleNamespace(jobs=[SimpleNamespace(plan="a hat")])]

    async def other_file() -> None:
        async with validation.turns:
            await have_answered.wait()
            filters.clock += 1000

    async def check() -> float:
        with tempfile.TemporaryFile() as rows:
            validated = Validated(
                batch_id=new_id(), tenant_id=new_id(), now=datetime.now(UTC), rows=rows
            )
            async with asyncio.TaskGroup() as group, validation.turns:
                group.create_task(other_file())
                await asyncio.sleep(0)  # until it stands in line
                await validation._check_prompts(resources, principal, parts, validated)
        return validated.filter_seconds

    assert asyncio.run(check()) == 2
    assert (filters.free, filters.clock) == ([False], 1002)
