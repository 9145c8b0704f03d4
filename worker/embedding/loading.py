"""A model that is being loaded on a thread of its own, is loaded, or cannot be."""

import threading
import time
from collections.abc import Callable
from typing import Generic, TypeVar

from shared.logging import get_logger

log = get_logger(__name__)

M = TypeVar("M")

_PAUSE_SECONDS = 10.0
"""After a load that failed: to try takes seconds of a core."""


class ModelNotLoaded(Exception):
    """There is no embedding for now; the text says why and may reach a client."""


class Loading(Generic[M]):
    """Begins to load at once; whoever needs the model waits for it as long as it likes.

    What failed may have had a reason that passes, so that the first who asks `pause` seconds later
    has it tried again.
    """

    def __init__(self, name: str, load: Callable[[], M], pause: float = _PAUSE_SECONDS) -> None:
        self._name = name
        self._make = load
        self._pause = pause
        self._again_at = 0.0
        self._lock = threading.Lock()
        self._done = threading.Event()
        self._model: M | None = None
        self._begin()

    def wait(self, seconds: float | None) -> M:
        """The model, when it is loaded.

        Raises:
            ModelNotLoaded: it cannot be, or is not after `seconds`; it says which.
        """
        with self._lock:
            failed = self._done.is_set() and self._model is None
            if failed and time.monotonic() >= self._again_at:
                self._done.clear()
                self._begin()
        if not self._done.wait(seconds):
            raise ModelNotLoaded("The CPU worker is still loading the embedding model.")
        if self._model is None:
            raise ModelNotLoaded(f"The CPU worker cannot load the embedding model {self._name}.")
        return self._model

    def _begin(self) -> None:
        threading.Thread(target=self._load, name=f"load-{self._name}", daemon=True).start()

    def _load(self) -> None:
        try:
            self._model = self._make()
            log.info("embedding_model_ready", model=self._name)
        except Exception:  # whatever a library raises, queries must be told
            log.exception("embedding_model_failed", model=self._name)
        finally:
            self._again_at = time.monotonic() + self._pause
            self._done.set()
