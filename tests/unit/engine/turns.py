"""What happens on the engine's thread, at the turn or the time that a test says.

The engine does not wait for the test's thread, which may stand still for seconds on a busy machine.
"""

import threading
from collections.abc import Callable, Iterable
from typing import Any, TypeVar

from worker.engine.interface import ImageRequest
from worker.engine.loop import StepLoop

T = TypeVar("T")


def between_turns(engine: StepLoop[Any], action: Callable[[], T]) -> T:
    """Do something on the engine's thread, which makes no tick meanwhile."""
    return engine._on_engine_thread(action)


def submit_together(engine: StepLoop[Any], requests: Iterable[ImageRequest]) -> list[Any]:
    """Let all of them in at one turn: none has the engine for itself until the next one comes."""
    return between_turns(engine, lambda: [engine.submit(each) for each in requests])


def after_ticks(engine: StepLoop[Any], count: int, action: Callable[[], object]) -> None:
    """Let the engine's thread do something at the end of that tick, counted from now."""
    backend, made = engine._backend, 0
    tick = backend.tick

    def counted(*arguments: Any) -> Any:
        nonlocal made
        work = tick(*arguments)
        made += 1
        if made == count:
            action()
        return work

    backend.tick = counted  # type: ignore[method-assign,assignment]


class Clock:
    """Stands for the module `time`: time passes as the test or the work says, and at no stall."""

    def __init__(self) -> None:
        self.now = 0.0

    def monotonic(self) -> float:
        """The time."""
        return self.now

    def perf_counter(self) -> float:
        """The time, too."""
        return self.now

    def sleep(self, seconds: float) -> None:
        """It passes at once."""
        self.now += seconds


class WatchedClock(Clock):
    """The watchdog's time."""

    def __init__(self, seconds: float) -> None:
        """`seconds`: how long, of real time, the watchdog may leave it alone."""
        super().__init__()
        self._limit = seconds
        self._looked = threading.Event()

    def monotonic(self) -> float:
        """The time; notes that the watchdog has looked at it."""
        if threading.current_thread().name == "engine-watchdog":
            self._looked.set()
        return self.now

    def sleep(self, seconds: float) -> None:
        """Let time pass, until the watchdog has seen it."""
        self.now += seconds
        self._looked.clear()
        assert self._looked.wait(self._limit)
