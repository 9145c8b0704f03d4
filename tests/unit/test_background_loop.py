"""Background loops of a worker: an error ends none, closing ends each, leaders alone lead."""

import threading
from collections.abc import Callable, Iterator

import pytest
from sqlalchemy.exc import SQLAlchemyError

from worker.core.loop import BackgroundLoop, LeaderLoop
from worker.maintenance.leader import periodic, periodic_tasks

LONG = 60.0
"""Seconds for which nothing happens by itself in a test."""


class Counted(BackgroundLoop):
    """Counts its steps; each calls what the test says, and tells of its end."""

    def __init__(
        self, action: Callable[[int], None] = lambda _: None, interval: float | None = 0.001
    ) -> None:
        super().__init__("counted", interval, join=LONG)
        self.steps = 0
        self.finished = 0
        self.moved = threading.Semaphore(0)
        self._action = action

    def step(self) -> float | None:
        self.steps += 1
        self.moved.release()
        self._action(self.steps)
        return self._interval

    def finish(self) -> None:
        self.finished += 1

    def wait(self, steps: int) -> None:
        for _ in range(steps):
            assert self.moved.acquire(timeout=LONG)


@pytest.mark.parametrize("error", [SQLAlchemyError(), ConnectionError(), ValueError()])
def test_no_error_ends_a_loop(error: Exception) -> None:
    def fail(_: int) -> None:
        raise error

    with Counted(fail) as loop:
        loop.wait(3)
    assert loop.finished == 1


def test_a_closed_loop_takes_no_further_step_and_does_not_wait_for_its_interval() -> None:
    loop = Counted(interval=LONG)
    loop.start()
    loop.wait(1)
    loop.close()
    assert (loop.steps, loop.finished) == (1, 1)
    loop.wake()
    assert loop.steps == 1


def test_a_loop_without_an_interval_waits_to_be_woken() -> None:
    with Counted(interval=None) as loop:
        assert not loop.moved.acquire(timeout=0.05)
        loop.wake()
        loop.wait(1)
        assert not loop.moved.acquire(timeout=0.05)


def test_a_wake_during_a_step_is_not_lost() -> None:
    def wake_once(step: int) -> None:
        if step == 1:
            loop.wake()

    loop = Counted(wake_once, interval=None)
    with loop:
        loop.wake()
        loop.wait(2)


def test_a_loop_that_was_never_started_can_be_closed() -> None:
    loop = Counted()
    loop.close()
    assert loop.steps == 0


def test_closing_ends_a_pause_within_a_step() -> None:
    loop = Counted(lambda _: loop.pause(LONG))
    loop.start()
    loop.wait(1)
    loop.close()
    assert loop.finished == 1


class Led(LeaderLoop):
    """Notes when it leads and when it forgets."""

    def __init__(self, is_leader: Callable[[], bool]) -> None:
        super().__init__("led", 0.001, is_leader)
        self.seen: list[str] = []

    def lead(self) -> float | None:
        self.seen.append("led")
        return self._interval

    def reset(self) -> None:
        self.seen.append("reset")


def test_a_loop_leads_only_while_its_process_does() -> None:
    answers: Iterator[bool] = iter([True, False, True])
    done = threading.Event()

    def is_leader() -> bool:
        answer = next(answers, None)
        if answer is None:
            done.set()
            return False
        return answer

    with Led(is_leader) as loop:
        assert done.wait(LONG)
    assert loop.seen[:3] == ["led", "reset", "led"]


def test_periodic_methods_are_found_in_the_order_they_are_written() -> None:
    class Work:
        @periodic(waits_for_renewals=True)
        def second(self) -> int:
            return 2

        def unmarked(self) -> int:
            return 0

        @periodic()
        def first(self) -> int:
            return 1

    tasks = periodic_tasks(Work(), Work())
    assert [(task.name, task.waits_for_renewals) for task in tasks] == [
        *(("second", True), ("first", False)),
        *(("second", True), ("first", False)),
    ]
    assert [task.perform() for task in tasks] == [2, 1, 2, 1]
