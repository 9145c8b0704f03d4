"""One turn of the step loop: drop, decode, choose, launch, settle. The engine's thread only.

Work is handed to the device and settled later, in order; on a GPU one piece stays queued, so that
the device goes on while the host prepares the next tick.
"""

import logging
import time
from collections import deque
from collections.abc import Callable
from typing import Generic, TypeVar

from shared.core.errors import InternalError, JobError, OutOfMemory
from worker.engine.account import Account
from worker.engine.admission import Admission, Batch
from worker.engine.backend import Backend, Picture, Preview, R, Shape, Work
from worker.engine.errors import Canceled
from worker.engine.flight import Flight
from worker.engine.interface import GeneratedImage, ImageRequest
from worker.engine.notifier import Notifier

logger = logging.getLogger(__name__)

T = TypeVar("T")

_NO_ROOM = "The device ran out of memory with a single row."
_RETRIED = "out of memory at 1 row: made once more after releasing memory"


class Turns(Generic[R]):
    """The images in flight on one backend.

    Whatever fails an image fails that image; whatever breaks the device is raised.
    """

    def __init__(
        self, backend: Backend[R], notifier: Notifier, alive: Callable[[], None] = lambda: None
    ) -> None:
        """`alive` is called when a part of a long turn has ended (see `watchdog`)."""
        self.account = Account()
        self.admission: Admission[Flight[R]] = Admission(exclusive=backend.exclusive)
        self._backend = backend
        self._notifier = notifier
        self._alive = alive
        self._to_decode: deque[Flight[R]] = deque()
        self._pending: deque[Callable[[], None]] = deque()
        """How to settle what the device was handed, oldest first."""

    @property
    def idle(self) -> bool:
        """Whether there is nothing to do and nothing under way."""
        return not (len(self.admission) or self._to_decode or self._pending)

    def admit(self, flight: Flight[R]) -> None:
        """Let an image in, at the shape that holds now: rows may have shrunk since it came."""
        flight.shape = self._backend.shape_of(flight.request)
        self.admission.add(flight)

    def turn(self) -> None:
        """Decode what is finished, then make one tick."""
        self._drop_canceled()
        self._decode_finished()
        self._settle(keep=self._backend.runs_ahead)  # a finished image waits for no other tick
        batch = self.admission.choose()
        if batch is not None:
            self._launch(batch)
        more = batch is not None or self._to_decode
        self._settle(keep=self._backend.runs_ahead if more else 0)

    def stop(self) -> None:
        """Let go of every image, its bill complete; whoever still waits is told `Canceled`."""
        for flight in [*self.admission, *self._to_decode]:
            self._cancel(flight)

    def _drop_canceled(self) -> None:
        for flight in [flight for flight in self.admission if flight.canceled]:
            self.admission.remove(flight)
            self._cancel(flight)
        for flight in [flight for flight in self._to_decode if flight.canceled]:
            self._to_decode.remove(flight)
            self._cancel(flight)

    def _cancel(self, flight: Flight[R]) -> None:
        """Settle what is under way first: the bill of a canceled image is complete, too."""
        self._settle()
        self._discard(flight)
        self.account.canceled += 1
        flight.fail_canceled()

    def _settle(self, keep: int = 0) -> None:
        while len(self._pending) > keep:
            self._pending.popleft()()
            self._alive()

    # --- ticks ------------------------------------------------------------------------------

    def _launch(self, batch: Batch[Flight[R]]) -> None:
        """Hand one tick to the device."""
        flights = [flight for flight in batch.entries if flight.started or self._prepare(flight)]
        # Those that had to make room meanwhile begin anew in another turn.
        flights = [flight for flight in flights if flight.started and flight.shape == batch.shape]
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
                self.admission.remove(flight)
                self._to_decode.append(flight)

    def _prepare(self, flight: Flight[R]) -> bool:
        """Encode a new image's prompt and draw its latents; False if that failed."""
        try:
            state, work = self._with_memory_released(
                lambda: self._backend.prepare(flight.request, flight.shape)
            )
        except Exception as error:
            if not self._backend.is_out_of_memory(error):
                self._give_up(flight, error)
                return False
        else:
            self._alive()
            flight.start(state)
            self._pending.append(lambda: self.account.bill(flight, work.settle()[1]))
            return True
        if not self._make_room(flight.request):
            self._give_up(flight, OutOfMemory(_NO_ROOM))
        return False

    def _progress(self, flight: Flight[R]) -> Callable[[], None]:
        """The update to give once the tick is done; its preview is drawn now, from this tick."""
        state, listener = flight.state, flight.listener
        if state is None or listener is None or not listener.due(state.step, state.steps):
            return _nothing
        preview = self._preview(state) if flight.request.previews else None
        step, steps = state.step, state.steps
        return lambda: self._notifier.tell(listener, step, steps, preview)

    def _preview(self, state: R) -> Preview | None:
        try:
            return self._backend.preview(state)
        except Exception as error:  # an image is worth more than a look at it
            if self._backend.is_fatal(error):
                raise
            logger.warning("A preview could not be drawn: %s", error)
            return None

    def _settle_tick(
        self,
        shape: Shape,
        flights: list[Flight[R]],
        work: Work[None],
        told: list[Callable[[], None]],
    ) -> None:
        _, seconds = work.settle()
        self.account.bill_tick(shape, flights, seconds)
        self.admission.charge(shape, seconds)
        for tell in told:
            tell()

    # --- decoding ---------------------------------------------------------------------------

    def _decode_finished(self) -> None:
        """Decode between ticks: for about as long as one tick lasts, and one image at least."""
        expected = 0.0
        while self._to_decode:
            self._decode(self._to_decode.popleft())
            expected += self.account.decode_seconds
            if not expected or expected >= self.account.tick_seconds:  # 0: not known yet
                return

    def _decode(self, flight: Flight[R]) -> None:
        state = flight.state
        if state is None:
            raise InternalError("An image without a row state cannot be decoded.")
        try:
            work = self._with_memory_released(lambda: self._backend.decode(state))
        except Exception as error:
            if not self._backend.is_out_of_memory(error):
                self._give_up(flight, error)
                return
        else:
            self._alive()
            self._pending.append(lambda: self._settle_decode(flight, state, work))
            return
        if self._make_room(flight.request):
            self._to_decode.appendleft(flight)  # its latents are done; only this is tried again
        else:
            self._give_up(flight, OutOfMemory(_NO_ROOM))

    def _settle_decode(self, flight: Flight[R], state: R, work: Work[Picture]) -> None:
        picture, seconds = work.settle()
        self.account.bill_decode(flight, seconds)
        if not picture.sound:
            try:
                picture = self._rescue(flight, state)
            except Canceled:
                self._cancel(flight)
                return
            except Exception as error:
                self._give_up(flight, error)
                return
        self._finish(flight, state, picture)

    def _rescue(self, flight: Flight[R], state: R) -> Picture:
        """Once more in higher precision, for as long as somebody wants it."""

        def alive() -> None:
            self._alive()
            if flight.canceled:
                raise Canceled

        self._settle()  # what is queued before it has a bill of its own
        started = time.perf_counter()
        try:
            picture, note = self._with_memory_released(
                lambda: self._backend.rescue(flight.request, state, alive)
            )
        finally:
            self.account.bill(flight, time.perf_counter() - started)
        flight.notes = (*flight.notes, note)
        return picture

    def _finish(self, flight: Flight[R], state: R, picture: Picture) -> None:
        finished_at = time.monotonic()
        self.account.images += 1
        facts = self._backend.facts(state, flight.shape, flight.notes)
        steps = state.steps
        self._discard(flight)
        flight.resolve(
            GeneratedImage(
                pixels=picture.pixels,
                steps=steps,
                facts=facts,
                gpu_seconds=flight.gpu_seconds,
                started_at=flight.started_at or finished_at,
                finished_at=finished_at,
            )
        )

    # --- faults -----------------------------------------------------------------------------

    def _tick_failed(self, shape: Shape, flights: list[Flight[R]], error: Exception) -> None:
        if not self._backend.is_out_of_memory(error):
            for flight in flights:
                self._give_up(flight, error)
            return
        self._settle()
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

    def _make_room(self, request: ImageRequest) -> bool:
        """Fewer rows at the size of a request that nothing is left for; False at one row."""
        self._settle()
        self._backend.release_memory()
        shape = self._backend.shape_of(request)
        smaller = self._backend.shrink(shape)
        if smaller is not None:
            self._restart_smaller(shape, smaller)
        return smaller is not None

    def _restart_smaller(self, shape: Shape, smaller: Shape) -> None:
        note = f"out of memory at {shape.rows} rows: made at {smaller.rows}"
        logger.warning("%s (%d x %d pixels)", note, shape.width, shape.height)
        self.account.shrinks += 1
        for flight in self.admission.members(shape):
            self._readmit(flight, smaller, note)

    def _readmit(self, flight: Flight[R], shape: Shape, note: str) -> None:
        """Begin anew at another shape: half an image at each would match neither."""
        self.admission.remove(flight)
        self._discard(flight)
        flight.restart(shape, note)
        self.admission.add(flight)

    def _with_memory_released(self, work: Callable[[], T]) -> T:
        """Do the work; if memory was what failed, release what is cached and do it once more."""
        try:
            return work()
        except Exception as error:
            if not self._backend.is_out_of_memory(error):
                raise
        self._settle()
        self._backend.release_memory()
        return work()

    def _give_up(self, flight: Flight[R], error: Exception) -> None:
        """Fail one image; if the device itself is gone, raise instead."""
        if self._backend.is_fatal(error):
            raise error
        self._settle()  # its bill must be complete
        if flight in self.admission.members(flight.shape):
            self.admission.remove(flight)
        self._discard(flight)
        if self._backend.is_out_of_memory(error):
            error = OutOfMemory(_NO_ROOM)
        elif not isinstance(error, JobError):
            logger.error("An image failed", exc_info=error)
            error = InternalError(f"{type(error).__name__}: {error}")
        flight.fail(error)

    def _discard(self, flight: Flight[R]) -> None:
        if flight.state is not None:
            self._backend.discard(flight.state)
            flight.state = None  # callers keep their tickets, and latents lie on the device


def _nothing() -> None:
    """An update that is not due."""
