"""One call of a diffusers pipeline, held after each step until it is told to continue.

The call runs on a thread of its own and its step callback waits there, so that the step loop can
count its steps, cancel it and time it like any row, though it knows nothing of its inside. The two
threads take strict turns: never do both use the device.
"""

import inspect
import threading
from typing import Any

import numpy as np
from numpy.typing import NDArray


class _Abandoned(BaseException):
    """Raised inside the pipeline's call to end it."""


class PipelineRun:
    """The row state of a pipeline that is called as a whole."""

    def __init__(
        self,
        pipeline: Any,
        arguments: dict[str, Any],
        *,
        size: tuple[int, int],
        steps: int,
        scheduler: Any,
        notes: tuple[str, ...],
        dtype: str,
    ) -> None:
        self.size = size
        """(width, height) in pixels, as asked for."""
        self.steps = steps
        self.step = 0
        self.scheduler = scheduler
        self.notes = notes
        self.dtype = dtype
        self.rescued = False
        self.error: Exception | None = None
        self._pipeline = pipeline
        self._arguments = dict(arguments)
        if "callback_on_step_end" in inspect.signature(pipeline.__call__).parameters:
            self._arguments["callback_on_step_end"] = self._held_after_step
        self._go = threading.Semaphore(0)
        self._holds = threading.Semaphore(0)
        self._thread: threading.Thread | None = None
        self._ended = False
        self._abandoned = False
        self._failure: BaseException | None = None
        self._image: NDArray[np.float32] | None = None

    @property
    def finished(self) -> bool:
        """Whether only the decoding is left; a pipeline without step callbacks is done at once."""
        return self._ended or self.step >= self.steps

    def advance(self) -> None:
        """Run to the end of the next step.

        Raises:
            Exception: whatever the pipeline's call raised.
        """
        if self._thread is None:
            self._thread = threading.Thread(target=self._call, name="pipeline", daemon=True)
            self._thread.start()
        self._go.release()
        self._holds.acquire()
        if self._failure is not None:
            failure, self._failure = self._failure, None
            try:
                raise failure
            finally:
                del failure  # or its frames would keep what the call had on the device

    def finish(self) -> NDArray[np.float32]:
        """Run to the end; the image is (height, width, 3) in 0 … 1."""
        while not self._ended:
            self.advance()
        if self._image is None:
            raise RuntimeError("The pipeline's call ended without an image.")
        return self._image

    def abandon(self) -> None:
        """End the call where it is."""
        if self._thread is None or self._ended:
            return
        self._abandoned = True
        self._go.release()
        self._thread.join()

    def _call(self) -> None:
        self._go.acquire()
        try:
            self._image = np.asarray(self._pipeline(**self._arguments).images[0])
        except _Abandoned:
            pass
        except BaseException as error:  # handed to the engine's thread
            self._failure = error
        self._ended = True
        # They refer to this run and to the model, which may be a copy made for it alone.
        self._arguments.clear()
        self._pipeline = None
        self._holds.release()

    def _held_after_step(self, _: Any, index: int, __: Any, values: dict[str, Any]) -> Any:
        self.step = min(index + 1, self.steps)
        self._holds.release()
        self._go.acquire()
        if self._abandoned:
            raise _Abandoned
        return values
