"""The step loop: many threads submit, one thread owns the device and ticks.

One turn of the loop: let new images in, drop canceled ones, decode what is finished, choose the
rows of the next tick, hand the tick to the device, and settle what the device has done meanwhile.
Everything that knows tensors is in the backend; everything that decides whose turn it is, is in
`admission`.
"""

import logging
import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from typing import Generic, TypeVar

from shared.errors import DeviceLost, InternalError, JobError, OutOfMemory
from worker.engine.account import Account
from worker.engine.admission import Admission, Batch
from worker.engine.backend import Backend, Picture, R, Shape, Work
from worker.engine.errors import Canceled, EngineClosed
from worker.engine.flight import Flight
from worker.engine.interface import (
    EngineCounters,
    FaultCallback,
    GeneratedImage,
    ImageRequest,
    ModelFacts,
    StepCallback,
    WarmUpReport,
)
from worker.engine.notifier import Notifier
from worker.engine.watchdog import Watchdog

logger = logging.getLogger(__name__)

T = TypeVar("T")

TICK_BUDGET = 120.0
"""Seconds after which a tick, a decode or an encode counts as hung. The slowest honest one (SDXL
in full precision on a small GPU) takes seconds; a budget this wide never kills honest work."""


class StepLoop(Generic[R]):
    """An `Engine` over any `Backend`."""

    def __init__(
        self,
        backend: Backend[R],
        on_fault: FaultCallback | None = None,
        tick_budget: float = TICK_BUDGET,
    ) -> None:
        self._backend = backend
        self._on_fault = on_fault
        self._tick_budget = tick_budget
        self._admission: Admission[Flight[R]] = Admission(exclusive=backend.exclusive)
        self._account = Account()
        self._condition = threading.Condition()
        self._inbox: deque[Flight[R]] = deque()
        self._commands: deque[Callable[[], None]] = deque()
        self._to_decode: deque[Flight[R]] = deque()
        self._pending: deque[Callable[[], None]] = deque()
        self._open: set[Flight[R]] = set()
        self._wakeups = 0
        self._closed = False
        self._fault: JobError | None = None
        self._thread: threading.Thread | None = None

    # --- what callers see -------------------------------------------------------------------

    def load(self) -> None:
        """Start the engine's thread and load the checkpoint on it."""
        if self._thread is not None:
            raise EngineClosed("The engine was loaded before.")
        self._notifier = Notifier()
        self._watchdog = Watchdog(self._tick_budget, self._hung)
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)
        self._thread.start()
        self._on_engine_thread(self._backend.load)

    def warm_up(self) -> WarmUpReport:
        """Run every configured size once, between ticks."""
        return self._on_engine_thread(self._backend.warm_up)

    def submit(self, request: ImageRequest, on_step: StepCallback | None = None) -> Flight[R]:
        """Queue one image."""
        self._backend.check(request)
        flight: Flight[R] = Flight(request, self._backend.shape_of(request), on_step, self._wake)
        with self._condition:
            if self._fault is not None:
                raise DeviceLost(self._fault.message)
            if self._closed or self._thread is None:
                raise EngineClosed("The engine is not loaded, or closed.")
            self._open.add(flight)
            self._inbox.append(flight)
            self._wakeups += 1
            self._condition.notify()
        return flight

    def truncated_part(self, prompt: str) -> str | None:
        """What the text encoders cut off."""
        return self._backend.truncated_part(prompt)

    @property
    def model(self) -> ModelFacts:
        """The loaded model."""
        return self._backend.model

    @property
    def busy_seconds(self) -> float:
        """Device seconds so far."""
        return self._account.busy_seconds

    @property
    def counters(self) -> EngineCounters:
        """Totals so far."""
        return self._account.counters(self._admission.pauses)

    def close(self) -> None:
        """Stop the thread; unfinished images raise `Canceled`."""
        with self._condition:
            self._closed = True
            self._wakeups += 1
            self._condition.notify()
        if self._thread is None:
            return
        if self._fault is None and threading.current_thread() is not self._thread:
            self._thread.join(timeout=self._tick_budget)
        self._fail_open(Canceled("The engine was closed."))
        self._watchdog.stop()
        self._notifier.close()

    # --- the engine's thread ----------------------------------------------------------------

    def _run(self) -> None:
        try:
            while self._turn():
                pass
        except Exception as error:
            logger.exception("The engine's thread ended")
            self._break(DeviceLost(f"The device failed: {type(error).__name__}: {error}"))
        finally:
            self._backend.close()

    def _turn(self) -> bool:
        """One turn of the loop; False when the engine is closed."""
        self._take_in()
        if self._closed or self._fault is not None:
            return False
        self._drop_canceled()
        with self._watchdog:
            self._decode_finished()
            batch = self._admission.choose()
            if batch is not None:
                self._launch(batch)
            keep = self._backend.runs_ahead if batch is not None else 0
            while len(self._pending) > keep:
                self._pending.popleft()()
        return True

    def _take_in(self) -> None:
        """Wait until there is something to do; run commands and admit new images."""
        with self._condition:
            if not (len(self._admission) or self._to_decode or self._pending):
                self._condition.wait_for(lambda: self._wakeups > 0)
            self._wakeups = 0
            commands, self._commands = self._commands, deque()
            flights, self._inbox = self._inbox, deque()
        for flight in flights:
            flight.shape = self._backend.shape_of(flight.request)  # it may have shrunk meanwhile
            self._admission.add(flight)
        for command in commands:
            command()

    def _drop_canceled(self) -> None:
        for flight in [flight for flight in self._admission if flight.canceled]:
            self._admission.remove(flight)
            self._cancel(flight)
        for flight in [flight for flight in self._to_decode if flight.canceled]:
            self._to_decode.remove(flight)
            self._cancel(flight)

    def _cancel(self, flight: Flight[R]) -> None:
        """Settle what is under way first: the bill of a canceled image is complete, too."""
        self._settle_all()
        if flight.state is not None:
            self._backend.discard(flight.state)
        self._account.canceled += 1
        flight.fail_canceled()
        self._open.discard(flight)

    def _launch(self, batch: Batch[Flight[R]]) -> None:
        """Hand one tick to the device."""
        flights = [flight for flight in batch.entries if flight.started or self._prepare(flight)]
        states = [flight.state for flight in flights if flight.state is not None]
        if not states:
            return
        try:
            work = self._backend.tick(batch.shape, states)
        except Exception as error:
            self._tick_failed(batch.shape, flights, error)
            return
        told = [self._progress(flight) for flight in flights if flight.listener is not None]
        self._pending.append(lambda: self._settle_tick(batch.shape, flights, work, told))
        for flight, state in zip(flights, states, strict=True):
            if state.error is not None:
                self._give_up(flight, state.error)
            elif state.finished:
                self._admission.remove(flight)
                self._to_decode.append(flight)

    def _prepare(self, flight: Flight[R]) -> bool:
        """Encode a new image's prompt and draw its latents; False if that failed."""
        try:
            state, work = self._retry_without_memory(
                lambda: self._backend.prepare(flight.request, flight.shape)
            )
        except Exception as error:
            self._give_up(flight, error)
            return False
        flight.start(state)
        self._pending.append(lambda: self._account.bill(flight, work.settle()[1]))
        return True

    def _progress(self, flight: Flight[R]) -> Callable[[], None]:
        """The update to give once the tick is done; its preview is drawn now, from this tick."""
        state, listener = flight.state, flight.listener
        if state is None or listener is None or not listener.due(state.step, state.steps):
            return _nothing
        preview = self._backend.preview(state) if flight.request.previews else None
        step, steps = state.step, state.steps
        return lambda: self._notifier.tell(listener, step, steps, preview)

    def _settle_tick(
        self,
        shape: Shape,
        flights: list[Flight[R]],
        work: Work[None],
        told: list[Callable[[], None]],
    ) -> None:
        _, seconds = work.settle()
        self._account.bill_tick(shape, flights, seconds)
        self._admission.charge(shape, seconds)
        for tell in told:
            tell()

    # --- decoding ---------------------------------------------------------------------------

    def _decode_finished(self) -> None:
        """Decode between ticks: for as long as one tick lasts, and one image at least."""
        spent = 0.0
        while self._to_decode and (spent == 0.0 or spent < self._account.tick_seconds):
            self._decode(self._to_decode.popleft())
            spent += self._account.decode_seconds or float("inf")

    def _decode(self, flight: Flight[R]) -> None:
        state = flight.state
        if state is None:
            raise InternalError("An image without a row state cannot be decoded.")
        try:
            work = self._retry_without_memory(lambda: self._backend.decode(state))
        except Exception as error:
            self._give_up(flight, error)
            return
        self._pending.append(lambda: self._settle_decode(flight, state, work))

    def _settle_decode(self, flight: Flight[R], state: R, work: Work[Picture]) -> None:
        picture, seconds = work.settle()
        self._account.bill_decode(flight, seconds)
        try:
            if not picture.sound:
                picture, seconds, note = self._backend.rescue(flight.request, state)
                self._account.bill(flight, seconds)
                flight.notes = (*flight.notes, note)
        except Exception as error:
            self._give_up(flight, error)
            return
        facts = self._backend.facts(state, flight.shape, flight.notes)
        finished_at = time.monotonic()
        self._account.images += 1
        self._open.discard(flight)
        flight.resolve(
            GeneratedImage(
                pixels=picture.pixels,
                facts=facts,
                gpu_seconds=flight.gpu_seconds,
                started_at=flight.started_at or finished_at,
                finished_at=finished_at,
            )
        )
        self._backend.discard(state)

    # --- faults -----------------------------------------------------------------------------

    def _tick_failed(self, shape: Shape, flights: list[Flight[R]], error: Exception) -> None:
        if not self._backend.is_out_of_memory(error):
            for flight in flights:
                self._give_up(flight, error)
            return
        self._settle_all()
        self._backend.release_memory()
        smaller = self._backend.shrink(shape)
        if smaller is not None:
            self._restart_smaller(shape, smaller)
            return
        for flight in flights:
            if _RETRIED in flight.notes:
                self._give_up(flight, error)
            else:
                self._readmit(flight, shape, _RETRIED)

    def _restart_smaller(self, shape: Shape, smaller: Shape) -> None:
        note = f"out of memory at {shape.rows} rows: made at {smaller.rows}"
        logger.warning("%s (%d x %d pixels)", note, shape.width, shape.height)
        self._account.shrinks += 1
        for flight in self._admission.members(shape):
            self._readmit(flight, smaller, note)

    def _readmit(self, flight: Flight[R], shape: Shape, note: str) -> None:
        self._admission.remove(flight)
        if flight.state is not None:
            self._backend.discard(flight.state)
        flight.restart(shape, note)
        self._admission.add(flight)

    def _retry_without_memory(self, work: Callable[[], T]) -> T:
        """Try once more after giving cached memory back, if memory was what failed."""
        try:
            return work()
        except Exception as error:
            if not self._backend.is_out_of_memory(error):
                raise
        self._settle_all()
        self._backend.release_memory()
        return work()

    def _give_up(self, flight: Flight[R], error: Exception) -> None:
        """Fail one image; if the device itself is gone, the whole engine."""
        if self._backend.is_fatal(error):
            raise error
        if flight in self._admission.members(flight.shape):
            self._admission.remove(flight)
        if flight.state is not None:
            self._backend.discard(flight.state)
        if self._backend.is_out_of_memory(error):
            error = OutOfMemory("The device ran out of memory with a single row.")
        elif not isinstance(error, JobError):
            logger.error("An image failed", exc_info=error)
            error = InternalError(f"{type(error).__name__}: {error}")
        self._open.discard(flight)
        flight.fail(error)

    def _settle_all(self) -> None:
        while self._pending:
            self._pending.popleft()()

    def _hung(self, seconds: float) -> None:
        self._break(DeviceLost(f"The device did not answer for {seconds:.0f} s."))

    def _break(self, fault: JobError) -> None:
        """The device is gone: hand every image back, then say so. Any thread, once."""
        with self._condition:
            if self._fault is not None or self._closed:
                return
            self._fault = fault
        self._fail_open(fault)
        if self._on_fault is not None:
            self._on_fault(fault)

    def _fail_open(self, error: Exception) -> None:
        for flight in list(self._open):
            flight.fail(error)
        self._open.clear()

    # --- commands ---------------------------------------------------------------------------

    def _on_engine_thread(self, function: Callable[[], T]) -> T:
        """Run something between two ticks and wait for it."""
        result: Future[T] = Future()

        def command() -> None:
            try:
                result.set_result(function())
            except BaseException as error:  # handed to the waiting thread
                result.set_exception(error)

        with self._condition:
            if self._closed or self._fault is not None:
                raise EngineClosed("The engine is closed.")
            self._commands.append(command)
            self._wakeups += 1
            self._condition.notify()
        return result.result()

    def _wake(self) -> None:
        with self._condition:
            self._wakeups += 1
            self._condition.notify()


_RETRIED = "out of memory at 1 row: made once more after releasing memory"


def _nothing() -> None:
    """An update that is not due."""
