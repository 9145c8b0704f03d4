"""One tick of the step loop: drop, decode, choose, launch, finish. The engine's thread only.

Work is handed to the device and finished later, in order; on a GPU one piece stays queued, so that
the device continues while the host prepares the next tick.
"""

import logging
import time
from collections import deque
from collections.abc import Callable
from dataclasses import replace
from typing import Generic, TypeVar

from PIL import Image

from shared.core.errors import InternalError, JobError, OutOfMemory
from worker.engine.backend import Backend, DecodedImage, Preview, R, Shape, Work
from worker.engine.batch_composer import Batch, BatchComposer
from worker.engine.in_flight import InFlightRequest, UsageMeter
from worker.engine.interface import (
    Canceled,
    GeneratedImage,
    ImageRequest,
    Pass,
    RunFacts,
    StepUpdate,
)
from worker.engine.notifier import Notifier

logger = logging.getLogger(__name__)

T = TypeVar("T")

_NO_ROOM = "The device ran out of memory with a single row."
_RETRIED = "out of memory at 1 row: made once more after releasing memory"


class TickRunner(Generic[R]):
    """The images in flight on one backend.

    Whatever fails an image fails that image; whatever breaks the device is raised.
    """

    def __init__(
        self, backend: Backend[R], notifier: Notifier, alive: Callable[[], None] = lambda: None
    ) -> None:
        """`alive` is called when a part of a long turn has ended (see `watchdog`)."""
        self.usage = UsageMeter()
        self.composer: BatchComposer[InFlightRequest[R]] = BatchComposer(
            exclusive=backend.exclusive,
            most=backend.most,
            variant_per_text=backend.variant_per_text,
        )
        self._backend = backend
        self._notifier = notifier
        self._alive = alive
        self._to_decode: deque[InFlightRequest[R]] = deque()
        self._pending: deque[Callable[[], None]] = deque()
        """How to finish what the device was handed, oldest first."""

    @property
    def idle(self) -> bool:
        """Whether there is nothing to do and nothing under way."""
        return not (len(self.composer) or self._to_decode or self._pending)

    def add(self, entry: InFlightRequest[R]) -> None:
        """Let an image in, at the shape that holds now: rows may have shrunk since it came."""
        entry.shape = self._backend.shape_of(entry.request)
        self.composer.add(entry)

    def advance(self) -> None:
        """Decode what is finished, then make one tick."""
        self._drop_canceled()
        self._decode_finished()
        # A finished image waits for no other tick.
        self._finish_pending(keep=self._backend.runs_ahead)
        batch = self.composer.choose()
        if batch is not None:
            self._launch(batch)
        more = batch is not None or self._to_decode
        self._finish_pending(keep=self._backend.runs_ahead if more else 0)

    def stop(self) -> None:
        """Let go of every image, its bill complete; whoever still waits is told `Canceled`."""
        self._finish_pending()  # which may let images in for a second pass
        for entry in [*self.composer, *self._to_decode]:
            self._cancel(entry)

    def _drop_canceled(self) -> None:
        for entry in [entry for entry in self.composer if entry.canceled]:
            self.composer.remove(entry)
            self._cancel(entry)
        for entry in [entry for entry in self._to_decode if entry.canceled]:
            self._to_decode.remove(entry)
            self._cancel(entry)

    def _cancel(self, entry: InFlightRequest[R]) -> None:
        """Settle what is under way first: the bill of a canceled image is complete, too."""
        self._finish_pending()
        self._discard(entry)
        self.usage.canceled += 1
        entry.fail(Canceled())

    def _finish_pending(self, keep: int = 0) -> None:
        while len(self._pending) > keep:
            self._pending.popleft()()
            self._alive()

    # --- ticks ------------------------------------------------------------------------------

    def _launch(self, batch: Batch[InFlightRequest[R]]) -> None:
        entries = [entry for entry in batch.entries if entry.started or self._prepare(entry)]
        # Those that had to make room meanwhile start again in another turn.
        entries = [entry for entry in entries if entry.started and entry.shape == batch.shape]
        states = [entry.state for entry in entries if entry.state is not None]
        if not states:
            return
        try:
            work = self._backend.tick(batch.shape, states, self._alive)
        except Exception as error:
            self._tick_failed(batch.shape, entries, error)
            return
        updates = [tell for entry in entries if (tell := self._progress(entry)) is not None]
        self._pending.append(lambda: self._finish_tick(batch.shape, entries, work, updates))
        for entry, state in zip(entries, states, strict=True):
            if state.error is not None:
                self._give_up(entry, state.error)
            elif state.finished:
                self.composer.remove(entry)
                self._to_decode.append(entry)

    def _prepare(self, entry: InFlightRequest[R]) -> bool:
        """Encode a new image's prompt and draw its latents; False if that failed."""
        try:
            state, work = self._with_memory_released(
                lambda: self._backend.prepare(entry.request, entry.shape)
            )
        except Exception as error:
            if not self._backend.is_out_of_memory(error):
                self._give_up(entry, error)
                return False
        else:
            self._alive()
            entry.start(state)
            self._pending.append(lambda: self.usage.bill(entry, work()[1]))
            return True
        if not self._make_room(entry.request):
            self._give_up(entry, OutOfMemory(_NO_ROOM))
        return False

    def _progress(self, entry: InFlightRequest[R]) -> Callable[[], None] | None:
        """The update to give once the tick is done; its preview is drawn now, from this tick.

        None: nobody listens, or it is not due.
        """
        state, listener = entry.state, entry.listener
        if state is None or listener is None:
            return None
        step, steps, work_done = self._way(entry, state)
        if not listener.due(step, steps):
            return None
        preview = self._preview(state) if entry.request.previews else None
        update = StepUpdate(step, steps, None, work_done)
        return lambda: self._notifier.tell(listener, update, preview)

    def _way(self, entry: InFlightRequest[R], state: R) -> tuple[int, int, float | None]:
        """Steps done and steps in all, of both passes, and the share of the work that they are."""
        hires = entry.submitted.hires
        if hires is None:
            return state.step, state.steps, None
        pixels = entry.submitted.width * entry.submitted.height
        more_pixels = hires.width * hires.height
        if entry.first is not None:
            before, after = entry.first.steps, state.steps
            steps_done = (before, state.step)
        else:
            second = entry.submitted.second_pass(latents=state)
            before, after = state.steps, self._backend.steps_of(second)
            steps_done = (state.step, 0)
        work = pixels * before + more_pixels * after
        work_done = (pixels * steps_done[0] + more_pixels * steps_done[1]) / work
        return sum(steps_done), before + after, work_done

    def _preview(self, state: R) -> Preview | None:
        try:
            return self._backend.preview(state)
        except Exception as error:  # an image is worth more than a look at it
            if self._backend.is_fatal(error):
                raise
            logger.warning("A preview could not be drawn: %s", error)
            return None

    def _finish_tick(
        self,
        shape: Shape,
        entries: list[InFlightRequest[R]],
        work: Work[int],
        updates: list[Callable[[], None]],
    ) -> None:
        computed, seconds = work()
        self.usage.bill_tick(computed, entries, seconds)
        self.composer.charge(shape, seconds)
        for tell in updates:
            tell()

    # --- decoding ---------------------------------------------------------------------------

    def _decode_finished(self) -> None:
        """Decode between ticks: for about as long as one tick lasts, and one image at least."""
        expected = 0.0
        while self._to_decode:
            self._decode(self._to_decode.popleft())
            expected += self.usage.decode_seconds
            if not expected or expected >= self.usage.tick_seconds:  # 0: not known yet
                return

    def _decode(self, entry: InFlightRequest[R]) -> None:
        state, hires = entry.state, entry.request.hires
        if state is None:
            raise InternalError("An image without a row state cannot be decoded.")
        try:
            if hires is not None and hires.upscaler == "latent":
                size = hires.width, hires.height
                latents = self._with_memory_released(lambda: self._backend.upscale(state, *size))
                finish = lambda: self._finish_upscale(entry, state, latents)  # noqa: E731
            else:
                work = self._with_memory_released(lambda: self._backend.decode(state))
                finish = lambda: self._finish_decode(entry, state, work)  # noqa: E731
        except Exception as error:
            if not self._backend.is_out_of_memory(error):
                self._give_up(entry, error)
                return
        else:
            self._alive()
            self._pending.append(finish)
            return
        if self._make_room(entry.request):
            self._to_decode.appendleft(entry)  # its latents are done; only this is tried again
        else:
            self._give_up(entry, OutOfMemory(_NO_ROOM))

    def _finish_decode(self, entry: InFlightRequest[R], state: R, work: Work[DecodedImage]) -> None:
        image, seconds = work()
        self.usage.bill_decode(entry, seconds)
        if not image.sound:
            try:
                image = self._rescue(entry, state)
            except Canceled:
                self._cancel(entry)
                return
            except Exception as error:
                self._give_up(entry, error)
                return
        if entry.request.hires is None:
            self._resolve(entry, state, image)
        else:
            pixels = Image.fromarray(image.pixels)
            self._begin_second_pass(entry, state, entry.request.second_pass(image=pixels))

    def _finish_upscale(self, entry: InFlightRequest[R], state: R, work: Work[object]) -> None:
        latents, seconds = work()
        self.usage.bill(entry, seconds)
        self._begin_second_pass(entry, state, entry.request.second_pass(latents=latents))

    def _begin_second_pass(
        self, entry: InFlightRequest[R], state: R, request: ImageRequest
    ) -> None:
        first = Pass(self._backend.facts(state, entry.shape, entry.notes), state.steps)
        self._discard(entry)
        entry.begin_second_pass(request, self._backend.shape_of(request), first)
        self.composer.add(entry)

    def _rescue(self, entry: InFlightRequest[R], state: R) -> DecodedImage:
        """Once more in higher precision, for as long as somebody wants it."""

        def alive() -> None:
            self._alive()
            if entry.canceled:
                raise Canceled

        self._finish_pending()  # what is queued before it has a bill of its own
        started = time.perf_counter()
        # After a first pass that was sound enough to continue from, both are made again.
        until_now = entry.submitted if entry.first else replace(entry.request, hires=None)
        try:
            image, note = self._with_memory_released(
                lambda: self._backend.rescue(until_now, state, alive)
            )
        finally:
            self.usage.bill(entry, time.perf_counter() - started)
        entry.notes = (*entry.notes, note)
        return image

    def _resolve(self, entry: InFlightRequest[R], state: R, image: DecodedImage) -> None:
        finished_at = time.monotonic()
        self.usage.images += 1
        last = Pass(self._backend.facts(state, entry.shape, entry.notes), state.steps)
        first = entry.first
        if first is not None and state.rescued:
            first = replace(first, facts=_made_again(first.facts, last.facts))
        self._discard(entry)
        entry.resolve(
            GeneratedImage(
                pixels=image.pixels,
                steps=last.steps + (first.steps if first else 0),
                facts=(first or last).facts,
                hires=last if first else None,
                gpu_seconds=entry.gpu_seconds,
                started_at=entry.started_at or finished_at,
                finished_at=finished_at,
            )
        )

    # --- faults -----------------------------------------------------------------------------

    def _tick_failed(
        self, shape: Shape, entries: list[InFlightRequest[R]], error: Exception
    ) -> None:
        if not self._backend.is_out_of_memory(error):
            for entry in entries:
                self._give_up(entry, error)
            return
        self._finish_pending()
        self._backend.release_memory()
        smaller = self._backend.shrink(shape)
        if smaller is not None:
            self._restart_smaller(shape, smaller)
            return
        for entry in entries:
            if _RETRIED in entry.notes:
                self._give_up(entry, error)
            else:
                self._readmit(entry, shape, _RETRIED)

    def _make_room(self, request: ImageRequest) -> bool:
        """Fewer rows at the size of a request that nothing is left for; False at one row."""
        self._finish_pending()
        self._backend.release_memory()
        shape = self._backend.shape_of(request)
        smaller = self._backend.shrink(shape)
        if smaller is not None:
            self._restart_smaller(shape, smaller)
        return smaller is not None

    def _restart_smaller(self, shape: Shape, smaller: Shape) -> None:
        if smaller == shape:  # at fewer rows, with the same bits
            note = f"out of memory: made again in batches of at most {self._backend.most(shape)}"
        else:
            note = f"out of memory at {shape.batch_size} rows: made at {smaller.batch_size}"
        logger.warning("%s (%d x %d pixels)", note, shape.width, shape.height)
        self.usage.shrinks += 1
        for entry in self.composer.members(shape):
            self._readmit(entry, smaller, note)

    def _readmit(self, entry: InFlightRequest[R], shape: Shape, note: str) -> None:
        """Start again at another shape: half an image at each would match neither."""
        self.composer.remove(entry)
        self._discard(entry)
        entry.restart(shape, note)
        self.composer.add(entry)

    def _with_memory_released(self, work: Callable[[], T]) -> T:
        """Do the work; if memory was what failed, release what is cached and do it once more."""
        try:
            return work()
        except Exception as error:
            if not self._backend.is_out_of_memory(error):
                raise
        self._finish_pending()
        self._backend.release_memory()
        return work()

    def _give_up(self, entry: InFlightRequest[R], error: Exception) -> None:
        """Fail one image; if the device itself is gone, raise instead."""
        if self._backend.is_fatal(error):
            raise error
        self._finish_pending()  # its bill must be complete
        if entry in self.composer.members(entry.shape):
            self.composer.remove(entry)
        self._discard(entry)
        if self._backend.is_out_of_memory(error):
            error = OutOfMemory(_NO_ROOM)
        elif not isinstance(error, JobError):
            logger.error("An image failed", exc_info=error)
            error = InternalError(f"{type(error).__name__}: {error}")
        entry.fail(error)

    def _discard(self, entry: InFlightRequest[R]) -> None:
        if entry.state is not None:
            self._backend.discard(entry.state)
            entry.state = None  # callers keep their tickets, and latents lie on the device


def _made_again(first: RunFacts, last: RunFacts) -> RunFacts:
    """A first pass's facts after a rescue, which makes both passes as `last` says."""
    return replace(first, dtype=last.dtype, batch_size=last.batch_size, speed=last.speed)
