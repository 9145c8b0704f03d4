"""Queues over HTTP: what they count, and who may look."""

from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx2
import pytest
from sqlalchemy import update
from sqlalchemy.orm import Session, sessionmaker

from shared.core.ids import decode_id
from shared.jobs.models import Job
from tests.integration.fleet.conftest import Start, submit, wait_for_state
from tests.processes import wait_until

Queues = dict[tuple[str, str], dict[str, Any]]


def queues(operator: httpx2.Client) -> Queues:
    answer = operator.get("/v1/queues")
    assert answer.status_code == 200, answer.text
    page = answer.json()
    assert (page["has_more"], page["next_cursor"]) == (False, None)
    return {(each["model"], each["queue_class"]): each for each in page["data"]}


def wait_for(operator: httpx2.Client, found: Callable[[Queues], bool], what: str) -> Queues:
    """Wait until a later count shows it: they are a second old."""

    def look() -> Queues | None:
        shown = queues(operator)
        return shown if found(shown) else None

    shown: Queues = wait_until(look, 20, what)
    return shown


@pytest.fixture
def waiting(operator: httpx2.Client) -> Iterator[Callable[..., str]]:
    """Submit a job that nobody takes; it is canceled in the end."""
    made: list[str] = []

    def make(**fields: Any) -> str:
        made.append(submit(operator, **fields))
        return made[-1]

    yield make
    for job in made:
        operator.post(f"/v1/jobs/{job}/cancel").raise_for_status()


def test_every_queue_tells_how_much_waits_and_for_how_long(
    operator: httpx2.Client, database: sessionmaker[Session], waiting: Callable[..., str]
) -> None:
    def change(job: str, **values: Any) -> None:
        with database.begin() as session:
            session.execute(update(Job).where(Job.id == decode_id("job", job)).values(**values))

    before = queues(operator)
    assert list(before)[:4] == [
        *(("quick", "interactive"), ("quick", "bulk")),
        *(("slow", "interactive"), ("slow", "bulk")),
    ]
    assert before["quick", "bulk"]["oldest_age_seconds"] is None
    long_ago = datetime.now(UTC) - timedelta(hours=1)
    change(waiting(model="quick"), created_at=long_ago)
    waiting(model="quick")
    change(waiting(model="quick"), not_before=datetime.now(UTC) + timedelta(hours=1))
    change(waiting(model="quick"), queue_class="bulk")
    change(waiting(model="quick"), model="retired")

    def counted(shown: Queues) -> bool:
        return ("retired", "interactive") in shown

    shown = wait_for(operator, counted, "the job of a model that is gone")
    quick = shown["quick", "interactive"]
    assert quick["queued"] == before["quick", "interactive"]["queued"] + 2
    assert quick["running"] == 0
    assert 3600 <= quick["oldest_age_seconds"] < 4200
    bulk = shown["quick", "bulk"]
    assert bulk["queued"] == before["quick", "bulk"]["queued"] + 1
    assert 0 <= bulk["oldest_age_seconds"] < 600
    assert shown["retired", "interactive"]["queued"] == 1
    assert shown["retired", "bulk"] == {
        **{"model": "retired", "queue_class": "bulk", "queued": 0, "running": 0},
        "oldest_age_seconds": None,
    }


def test_jobs_in_workers_hands_run_and_do_not_wait(
    operator: httpx2.Client, start: Start, waiting: Callable[..., str]
) -> None:
    start("counted", "generate", "--model", "slow")
    wait_for_state(operator, "counted", "ready", "busy")
    waiting(model="slow", steps=400)
    shown = wait_for(
        operator, lambda found: found["slow", "interactive"]["running"] == 1, "a running job"
    )
    assert shown["slow", "interactive"]["queued"] == 0
    assert shown["slow", "bulk"]["running"] == 0


def test_only_the_operator_may_look(operator: httpx2.Client, outsider: dict[str, str]) -> None:
    refused = operator.get("/v1/queues", headers=outsider)
    assert (refused.status_code, refused.json()["code"]) == (403, "insufficient_scope")
