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
from dataclasses import replace
from typing import Any

from PIL import Image

from worker.engine.backend import Preview
from worker.engine.interface import StepCallback, StepUpdate

logger = logging.getLogger(__name__)

MIN_INTERVAL = 0.25
"""Seconds between two updates of one image; the last update always comes."""
_PREVIEW_QUALITY = 60


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
        self._latest: OrderedDict[Listener, tuple[StepUpdate, Preview | None]] = OrderedDict()
        self._condition = threading.Condition()
        self._closed = False
        self._thread = threading.Thread(target=self._run, name="engine-notifier", daemon=True)
        self._thread.start()

    def tell(self, listener: Listener, update: StepUpdate, preview: Preview | None) -> None:
        """Leave the newest state of an image, without its preview. Returns at once."""
        listener.updated_at = time.monotonic()
        with self._condition:
            self._latest[listener] = update, preview
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
                listener, (update, preview) = self._latest.popitem(last=False)
            if not listener.over:
                self._call(listener, update, preview)

    @staticmethod
    def _call(listener: Listener, update: StepUpdate, preview: Preview | None) -> None:
        try:
            if preview is not None:
                update = replace(update, preview_webp=_webp(preview))
            listener.callback(update)
        except Exception:  # a callback's failure is its own: the image continues
            logger.exception("A step callback failed")


def _webp(preview: Preview) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(preview()).save(buffer, "WEBP", quality=_PREVIEW_QUALITY, method=0)
    return buffer.getvalue()
