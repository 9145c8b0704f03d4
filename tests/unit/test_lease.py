"""Trying again ends when the job does, but never before the fate of a commit is known."""

import threading
import time
from types import SimpleNamespace
from typing import Any
from uuid import uuid4

import pytest
from sqlalchemy.exc import OperationalError, ProgrammingError

from shared.core.errors import SignerUnavailable, StorageUnavailable
from worker.jobs.lease import Lease, LeaseLost, StopReason, retry_database, retry_outage


def a_lease() -> Lease:
    job: Any = SimpleNamespace(id=uuid4(), attempt=1)
    return Lease(job)


def outage() -> OperationalError:
    return OperationalError("COMMIT", {}, Exception("server closed the connection"))


def failing(*errors: Exception, then: str = "done") -> Any:
    """An action that raises each of the errors once, and counts its calls."""
    left = list(errors)

    def action() -> str:
        action.calls += 1  # type: ignore[attr-defined]
        if left:
            raise left.pop(0)
        return then

    action.calls = 0  # type: ignore[attr-defined]
    return action


@pytest.fixture
def short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    """Before the first attempts, which all fail as soon."""
    monkeypatch.setattr("worker.jobs.lease._FIRST_PAUSE", 0.01)


@pytest.mark.usefixtures("short_pauses")
def test_an_outage_is_waited_out() -> None:
    assert retry_database(failing(outage(), outage()), a_lease()) == "done"
    assert retry_outage(failing(StorageUnavailable("away")), a_lease()) == "done"
    assert retry_outage(failing(SignerUnavailable("away")), a_lease()) == "done"


def test_a_wrong_statement_is_not_repeated() -> None:
    action = failing(ProgrammingError("SELECT", {}, Exception("no such column")))
    with pytest.raises(ProgrammingError):
        retry_database(action, a_lease())
    assert action.calls == 1


@pytest.mark.parametrize("reason", list(StopReason))
def test_what_was_stopped_before_its_first_try_is_not_tried(reason: StopReason) -> None:
    lease = a_lease()
    lease.stop(reason)
    for patiently in (retry_database, retry_outage):
        action = failing()
        with pytest.raises(LeaseLost):
            patiently(action, lease)
        assert action.calls == 0


@pytest.mark.usefixtures("short_pauses")
def test_an_unanswered_commit_is_asked_about_even_when_the_lease_looks_lost() -> None:
    lease = a_lease()

    def commit() -> str:
        if lease.stop_reason is None:
            lease.stop(StopReason.LOST)  # the heartbeat finds the job ended: by this very commit
            raise outage()
        return "already committed"

    assert retry_database(commit, lease) == "already committed"


def test_a_pause_ends_with_the_lease() -> None:
    lease = a_lease()
    threading.Timer(0.05, lease.stop, [StopReason.RELEASED]).start()
    began = time.monotonic()
    with pytest.raises(LeaseLost):
        retry_database(failing(*(outage() for _ in range(100))), lease)
    assert time.monotonic() - began < 60, "ten minutes is the patience with a living lease"
