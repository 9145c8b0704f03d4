"""Tell callers how far their images are, on a thread of its own, at most four times a second.

The engine's thread only leaves the newest state here, so neither a slow callback nor the encoding
of a preview ever holds up a tick; states that nobody looked at in time are simply replaced.
"""

import io
import logging
import threading
import time
from collections import OrderedDict
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any

from PIL import Image

from worker.engine.backend import Preview
from worker.engine.interface import StepCallback, StepUpdate

logger = logging.getLogger(__name__)

MIN_INTERVAL = 0.25
"""Seconds between two updates of one image; the last update always comes."""
_PREVIEW_QUALITY = 60


@dataclass(frozen=True)
class _Progress:
    step: int
    steps: int
    preview: Preview | None
    work_done: float | None


class Listener:
    """One image's callback and when it last heard from us."""

    def __init__(self, callback: StepCallback, future: "Future[Any]") -> None:
        self.callback = callback
        self.future = future
        self.updated_at = float("-inf")

    @property
    def over(self) -> bool:
        """Whether the image has failed or was taken back, so that nobody asks any more."""
        return self.future.done() and self.future.exception() is not None

    def due(self, step: int, steps: int) -> bool:
        """Whether an update for this step would be let through now."""
        return step >= steps or time.monotonic() - self.updated_at >= MIN_INTERVAL


class Notifier:
    """The thread that calls the callbacks."""

    def __init__(self) -> None:
        self._latest: OrderedDict[Listener, _Progress] = OrderedDict()
        self._condition = threading.Condition()
        self._closed = False
        self._thread = threading.Thread(target=self._run, name="engine-notifier", daemon=True)
        self._thread.start()

    def tell(
        self,
        listener: Listener,
        step: int,
        steps: int,
        preview: Preview | None,
        work_done: float | None = None,
    ) -> None:
        """Leave the newest state of an image. Returns at once."""
        listener.updated_at = time.monotonic()
        with self._condition:
            self._latest[listener] = _Progress(step, steps, preview, work_done)
            self._condition.notify()

    def close(self) -> None:
        """Stop; states not told yet are dropped."""
        with self._condition:
            self._closed = True
            self._condition.notify()
        if threading.current_thread() is not self._thread:
            self._thread.join(timeout=5)

    def _run(self) -> None:
        while True:
            with self._condition:
                self._condition.wait_for(lambda: self._latest or self._closed)
                if self._closed:
                    return
                listener, progress = self._latest.popitem(last=False)
            if not listener.over:
                self._call(listener, progress)

    @staticmethod
    def _call(listener: Listener, progress: _Progress) -> None:
        try:
            preview = _webp(progress.preview) if progress.preview is not None else None
            listener.callback(
                StepUpdate(progress.step, progress.steps, preview, progress.work_done)
            )
        except Exception:  # a callback's failure is its own: the image continues
            logger.exception("A step callback failed")


def _webp(preview: Preview) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(preview.rgb()).save(buffer, "WEBP", quality=_PREVIEW_QUALITY, method=0)
    return buffer.getvalue()
