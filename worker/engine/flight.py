"""One submitted image on its way through the loop: its ticket, its row state, its bill."""

import contextlib
import itertools
import time
from collections.abc import Callable
from concurrent.futures import Future, InvalidStateError
from typing import Generic

from worker.engine.backend import R, Shape
from worker.engine.errors import Canceled
from worker.engine.interface import GeneratedImage, ImageRequest, Lane, StepCallback
from worker.engine.notifier import Listener

_arrivals = itertools.count()


class Flight(Generic[R]):
    """An image from `submit` to its result. It is the `Ticket` that callers hold."""

    def __init__(
        self,
        request: ImageRequest,
        on_step: StepCallback | None,
        wake: Callable[[], None],
    ) -> None:
        self.request = request
        self.shape = Shape(request.width, request.height, guided=False, rows=1)
        """Set when the image is admitted, and again if it must shrink."""
        self.lane: Lane = request.lane
        self.arrival = next(_arrivals)
        self.state: R | None = None
        self.notes: tuple[str, ...] = ()
        self.gpu_seconds = 0.0
        self.started_at: float | None = None
        self.canceled = False
        self._future: Future[GeneratedImage] = Future()
        self._future.set_running_or_notify_cancel()  # only `cancel` of the ticket takes it back
        self.listener = Listener(on_step, self._future) if on_step is not None else None
        self._wake = wake

    @property
    def future(self) -> "Future[GeneratedImage]":
        """Resolves to the image; its callbacks run on the engine's thread, so keep them short."""
        return self._future

    @property
    def started(self) -> bool:
        """Whether it holds a row state."""
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

    def restart(self, shape: Shape, note: str) -> None:
        """Begin anew at another shape: half an image at each shape would match neither."""
        self.state = None
        self.shape = shape
        self.notes = (*self.notes, note)

    def resolve(self, image: GeneratedImage) -> None:
        """Hand the image over, unless the future was settled before (watchdog, close)."""
        with contextlib.suppress(InvalidStateError):
            self._future.set_result(image)

    def fail(self, error: BaseException) -> None:
        """Raise `error` in the caller, unless the future was settled before."""
        with contextlib.suppress(InvalidStateError):
            self._future.set_exception(error)

    def fail_canceled(self) -> None:
        """Tell the caller that the image was taken back."""
        self.fail(Canceled())
