"""The step loop: many threads submit, one thread owns the device and runs tick after tick.

`ticks` says what happens in a tick, `batch_composer` which rows take part, and the backend computes
it. Here is the traffic with other threads: submissions, commands, faults, the end.
"""

import logging
import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from shared.core.errors import DeviceLost, JobError
from shared.core.prompt_weights import PromptSyntax
from worker.engine.backend import Backend, R
from worker.engine.in_flight import InFlightRequest
from worker.engine.interface import (
    Canceled,
    EngineClosed,
    EngineCounters,
    FaultCallback,
    GeneratedImage,
    ImageRequest,
    ModelFacts,
    StepCallback,
    WarmUpReport,
)
from worker.engine.notifier import Notifier
from worker.engine.ticks import TickRunner

logger = logging.getLogger(__name__)

T = TypeVar("T")

_TO_COME = object()
"""Of the first pass, when a second one is checked before there is any."""


@dataclass(frozen=True)
class _Command:
    """Something to run on the engine's thread between two turns; another thread waits for it."""

    function: Callable[[], Any]
    result: "Future[Any]"

    def run(self) -> None:
        try:
            self.result.set_result(self.function())
        except BaseException as error:  # handed to the waiting thread
            self.result.set_exception(error)


class StepLoop(Generic[R]):
    """An `Engine` over the backend that `open_backend` gives; it is called by `load`."""

    def __init__(
        self,
        open_backend: Callable[[], Backend[R]],
        on_fault: FaultCallback | None,
        tick_budget: float,
    ) -> None:
        self._open_backend = open_backend
        self._on_fault = on_fault
        self._tick_budget = tick_budget
        self._condition = threading.Condition()
        self._inbox: deque[InFlightRequest[R]] = deque()
        self._commands: deque[_Command] = deque()
        self._open: dict[Future[GeneratedImage], InFlightRequest[R]] = {}
        self._awake = False
        self._closed = False
        self._fault: JobError | None = None
        self._loaded: tuple[Backend[R], TickRunner[R]] | None = None
        self._notifier = Notifier()
        self._watchdog = Watchdog(tick_budget, self._hung)
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)

    def load(self) -> None:
        """Start the engine's thread and open the checkpoint on it."""
        self._thread.start()
        try:
            self._on_engine_thread(self._load)
        except BaseException:
            self.close()
            raise

    def warm_up(self) -> WarmUpReport:
        """Run every configured size once, between turns."""
        return self._on_engine_thread(self._backend.warm_up)

    def submit(
        self, request: ImageRequest, on_step: StepCallback | None = None
    ) -> InFlightRequest[R]:
        backend = self._backend
        backend.check(request)
        if request.hires is not None:
            backend.check(request.second_pass(latents=_TO_COME))
        entry: InFlightRequest[R] = InFlightRequest(
            request, on_step, self._wake, backend.load_weights(request)
        )
        # Of the future alone: a ticket that refers to itself would keep its pixels for a while.
        entry.future.add_done_callback(self._remove)
        with self._condition:
            self._refuse_if_over()
            self._open[entry.future] = entry
            self._inbox.append(entry)
            self._awake = True
            self._condition.notify()
        return entry

    def truncated_part(
        self, prompt: str, prompt_syntax: PromptSyntax = "plain", long_prompt: bool = False
    ) -> str | None:
        return self._backend.truncated_part(prompt, prompt_syntax, long_prompt)

    @property
    def model(self) -> ModelFacts:
        return self._backend.model

    @property
    def allocated_bytes(self) -> int | None:
        return self._backend.allocated_bytes

    @property
    def loras(self) -> dict[str, str]:
        return self._backend.loras

    @property
    def busy_seconds(self) -> float:
        return self._ticks.usage.busy_seconds

    @property
    def counters(self) -> EngineCounters:
        ticks = self._ticks
        return ticks.usage.counters(ticks.composer.pauses)

    def close(self) -> None:
        with self._condition:
            self._closed = True
            self._awake = True
            self._condition.notify()
        own = threading.current_thread() is self._thread
        if self._thread.is_alive() and self._fault is None and not own:
            self._thread.join(timeout=self._tick_budget)
        self._fail_open(Canceled("The engine was closed."))
        self._watchdog.stop()
        self._notifier.close()

    # --- the engine's thread ----------------------------------------------------------------

    def _run(self) -> None:
        try:
            while self._once():
                pass
        except Exception as error:
            logger.exception("The engine's thread ended")
            self._break(DeviceLost(f"The device failed: {type(error).__name__}: {error}"))
        finally:
            with self._condition:
                left, self._commands = self._commands, deque()
            self._refuse(left)
            if self._loaded is not None:
                self._let_go(*self._loaded)

    def _let_go(self, backend: Backend[R], ticks: TickRunner[R]) -> None:
        """Free what images in flight hold, unless the device is gone and any call may hang."""
        if self._fault is None:
            try:
                ticks.stop()
            except Exception:
                logger.exception("The last images could not be let go")
        backend.close()

    def _once(self) -> bool:
        """Take in what other threads want, then one turn; False when it is over."""
        commands, entries = self._take_in()
        if self._over:
            self._refuse(commands)
            return False
        for command in commands:
            command.run()
        if self._loaded is not None:
            ticks = self._loaded[1]
            with self._watchdog:
                for entry in entries:
                    ticks.add(entry)
                ticks.advance()
        return True

    def _take_in(self) -> "tuple[deque[_Command], deque[InFlightRequest[R]]]":
        """Everything that was asked for since the last turn; waits if there is nothing to do."""
        with self._condition:
            if self._loaded is None or self._loaded[1].idle:
                self._condition.wait_for(lambda: self._awake)
            self._awake = False
            taken = self._commands, self._inbox
            self._commands, self._inbox = deque(), deque()
        return taken

    def _load(self) -> None:
        backend = self._open_backend()
        self._loaded = backend, TickRunner(backend, self._notifier, self._watchdog.restart)

    @property
    def _backend(self) -> Backend[R]:
        if self._loaded is None:
            raise EngineClosed("The engine is not loaded.")
        return self._loaded[0]

    @property
    def _ticks(self) -> TickRunner[R]:
        if self._loaded is None:
            raise EngineClosed("The engine is not loaded.")
        return self._loaded[1]

    def _on_engine_thread(self, function: Callable[[], T]) -> T:
        """Run something between two turns and wait for it."""
        result: Future[T] = Future()
        with self._condition:
            self._refuse_if_over()
            self._commands.append(_Command(function, result))
            self._awake = True
            self._condition.notify()
        return result.result()

    def _refuse(self, commands: "deque[_Command]") -> None:
        """Tell the threads that wait for these that the end came first."""
        for command in commands:
            command.result.set_exception(EngineClosed("The engine is closed."))

    def _wake(self) -> None:
        with self._condition:
            self._awake = True
            self._condition.notify()

    # --- faults -----------------------------------------------------------------------------

    @property
    def _over(self) -> bool:
        return self._closed or self._fault is not None

    def _refuse_if_over(self) -> None:
        if self._fault is not None:
            raise DeviceLost(self._fault.message)
        if self._closed:
            raise EngineClosed("The engine is closed.")

    def _hung(self, seconds: float) -> None:
        self._break(DeviceLost(f"The device did not answer for {seconds:.1f} s."))

    def _break(self, fault: JobError) -> None:
        """The device is gone: hand every image back, then say so. Any thread, once."""
        with self._condition:
            if self._over:
                return
            self._fault = fault
        self._fail_open(fault)
        if self._on_fault is not None:
            self._on_fault(fault)

    def _fail_open(self, error: Exception) -> None:
        for entry in list(self._open.values()):
            entry.fail(error)

    def _remove(self, future: "Future[GeneratedImage]") -> None:
        self._open.pop(future, None)


class Watchdog:
    """Calls `on_hang` from its own thread if a piece of work lasts longer than its budget.

    A hung kernel cannot be interrupted from Python, so the only cure is another process; the
    watchdog merely says so, once.
    """

    def __init__(self, budget: float, on_hang: Callable[[float], None]) -> None:
        self._budget = budget
        self._on_hang = on_hang
        self._since: float | None = None
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, name="engine-watchdog", daemon=True)
        self._thread.start()

    def __enter__(self) -> None:
        self._since = time.monotonic()

    def restart(self) -> None:
        """The work at hand consists of pieces, and one has ended: the budget is for each."""
        self._since = time.monotonic()

    def __exit__(self, *_: object) -> None:
        self._since = None

    def stop(self) -> None:
        self._stopped.set()

    def _run(self) -> None:
        while not self._stopped.wait(min(1.0, self._budget / 4)):
            since = self._since
            if since is not None and time.monotonic() - since > self._budget:
                self._stopped.set()
                self._on_hang(time.monotonic() - since)
