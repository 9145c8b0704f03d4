"""One submitted image on its way through the loop, and what all of them cost the device."""

import contextlib
import itertools
import time
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import Future, InvalidStateError
from typing import Generic

from worker.engine.backend import R, Shape
from worker.engine.interface import (
    EngineCounters,
    GeneratedImage,
    ImageRequest,
    Pass,
    QueueClass,
    StepCallback,
)
from worker.engine.notifier import Listener

_arrivals = itertools.count()


class InFlightRequest(Generic[R]):
    """An image from `submit` to its result. It is the `Ticket` that callers hold."""

    def __init__(
        self,
        request: ImageRequest,
        on_step: StepCallback | None,
        wake: Callable[[], None],
        weights: object = None,
    ) -> None:
        self.submitted = request
        self.request = request
        """Of the pass that is being made."""
        self.first: Pass | None = None
        """The first of two passes, once it is made."""
        self.weights: object = weights
        """Kept loaded until the image is made."""
        self.shape = Shape(request.width, request.height, batch_size=1)
        """Set when the image is admitted, and again if it must shrink."""
        self.queue_class: QueueClass = request.queue_class
        self.arrival = next(_arrivals)
        self.state: R | None = None
        self.notes: tuple[str, ...] = ()
        self.gpu_seconds = 0.0
        self.started_at: float | None = None
        self.canceled = False
        self.future: Future[GeneratedImage] = Future()
        """Resolves to the image; its callbacks run on the engine's thread, so keep them short."""
        self.future.set_running_or_notify_cancel()  # only `cancel` of the ticket takes it back
        self.listener = Listener(on_step, self.future) if on_step is not None else None
        self._wake = wake

    @property
    def started(self) -> bool:
        return self.state is not None

    def cancel(self) -> None:
        """Take the image back; the future raises `Canceled` within one tick."""
        self.canceled = True
        self._wake()

    def start(self, state: R) -> None:
        """Take the row state that the backend prepared."""
        self.state = state
        if self.started_at is None:
            self.started_at = time.monotonic()

    def begin_second_pass(self, request: ImageRequest, shape: Shape, first: Pass) -> None:
        """Go on from what the first pass made: same ticket, same bill, same place in the queue."""
        self.state = None
        self.request, self.shape, self.first = request, shape, first
        self.notes = ()

    def restart(self, shape: Shape, note: str) -> None:
        """Start again at another shape: half an image at each shape would match neither."""
        self.state = None
        self.shape = shape
        self.notes = (*self.notes, note)

    def resolve(self, image: GeneratedImage) -> None:
        """Hand the image over, unless the future is done already (watchdog, close)."""
        self._let_go()
        with contextlib.suppress(InvalidStateError):
            self.future.set_result(image)

    def fail(self, error: BaseException) -> None:
        """Raise `error` in the caller, unless the future is done already."""
        self._let_go()
        with contextlib.suppress(InvalidStateError):
            self.future.set_exception(error)

    def _let_go(self) -> None:
        """Callers keep their tickets: weights, and latents between passes, lie on the device."""
        self.weights, self.request = None, self.submitted


class UsageMeter:
    """Who used the device for how long. Written by the engine's thread, read by any."""

    def __init__(self) -> None:
        self.busy_seconds = 0.0
        self.tick_seconds = 0.0
        """Running mean of a tick, for decisions about the next one."""
        self.decode_seconds = 0.0
        """Running mean of a decode."""
        self.shrinks = 0
        self.images = 0
        self.canceled = 0
        self._ticks = 0
        self._live = 0
        self._padded = 0
        self._steps: Counter[str] = Counter()

    def bill_tick(
        self, computed: int, entries: Sequence[InFlightRequest[R]], seconds: float
    ) -> None:
        """Share a tick's time by its live rows: the padding among those computed is on them too."""
        self.busy_seconds += seconds
        self.tick_seconds = _running_mean(self.tick_seconds, seconds)
        for entry in entries:
            entry.gpu_seconds += seconds / len(entries)
            self._steps[entry.queue_class] += 1
        self._ticks += 1
        self._live += len(entries)
        self._padded += max(0, computed - len(entries))

    def bill(self, entry: InFlightRequest[R], seconds: float) -> None:
        """Charge one image for work done for it alone: encoding, rescue."""
        self.busy_seconds += seconds
        entry.gpu_seconds += seconds

    def bill_decode(self, entry: InFlightRequest[R], seconds: float) -> None:
        self.decode_seconds = _running_mean(self.decode_seconds, seconds)
        self.bill(entry, seconds)

    def counters(self, pauses: int) -> EngineCounters:
        return EngineCounters(
            ticks=self._ticks,
            live_rows=self._live,
            padded_rows=self._padded,
            steps_by_queue_class=dict(self._steps),
            pauses=pauses,
            out_of_memory_shrinks=self.shrinks,
            images=self.images,
            canceled=self.canceled,
        )


def _running_mean(mean: float, value: float) -> float:
    return value if mean == 0.0 else 0.8 * mean + 0.2 * value
