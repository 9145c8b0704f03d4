"""A model that is being loaded on a thread of its own, is loaded, or cannot be."""

import threading
from collections.abc import Callable
from typing import Generic, TypeVar

from shared.logging import get_logger

log = get_logger(__name__)

M = TypeVar("M")


class ModelNotLoaded(Exception):
    """There is no embedding for now; the text says why and may reach a client."""


class Loading(Generic[M]):
    """Begins to load at once; whoever needs the model waits for it as long as it likes."""

    def __init__(self, name: str, load: Callable[[], M]) -> None:
        self._name = name
        self._make = load
        self._done = threading.Event()
        self._model: M | None = None
        threading.Thread(target=self._load, name=f"load-{name}", daemon=True).start()

    @property
    def failed(self) -> bool:
        """Loading has ended without a model."""
        return self._done.is_set() and self._model is None

    def wait(self, seconds: float | None) -> M:
        """The model, when it is loaded.

        Raises:
            ModelNotLoaded: it cannot be, or is not after `seconds`; it says which.
        """
        if not self._done.wait(seconds):
            raise ModelNotLoaded("The CPU worker is still loading the embedding model.")
        if self._model is None:
            raise ModelNotLoaded(f"The CPU worker cannot load the embedding model {self._name}.")
        return self._model

    def _load(self) -> None:
        try:
            self._model = self._make()
            log.info("embedding_model_ready", model=self._name)
        except Exception:  # whatever a library raises, queries must be told
            log.exception("embedding_model_failed", model=self._name)
        finally:
            self._done.set()
