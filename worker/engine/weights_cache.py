"""Weights that jobs name, such as LoRAs, besides the model's own: those used last stay loaded."""

import threading
import time
import weakref
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Generic, Protocol, TypeVar

from shared.core.errors import JobError, OutOfMemory
from shared.core.safetensors import NotSafetensors, read_header
from worker.engine.device import is_out_of_memory

_REFUSED_SECONDS = 60.0


class _Sized(Protocol):
    @property
    def bytes(self) -> int:
        """Of its weights."""


W = TypeVar("W", bound=_Sized)


class WeightsCache(Generic[W]):
    """What one model has used last, up to a number of bytes. Thread-safe.

    What somebody holds stays in memory beyond the limit, and is found by others.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._held: weakref.WeakValueDictionary[str, W] = weakref.WeakValueDictionary()
        self._recent: OrderedDict[str, W] = OrderedDict()
        self._lock = threading.Lock()
        self._loading = threading.Lock()
        self._refused: dict[tuple[str, str], tuple[float, JobError]] = {}
        """Name and SHA-256 of what cannot be loaded -> until when that is believed, and why."""
        self._names: dict[str, str] = {}
        """Name -> SHA-256 of its file: one file may have several names."""

    @property
    def loaded(self) -> dict[str, str]:
        """Name -> SHA-256 of the file, of those that are here; the one used last at the end."""
        with self._lock:
            self._names = {n: sha256 for n, sha256 in self._names.items() if sha256 in self._recent}
            order = list(self._recent)
            return dict(sorted(self._names.items(), key=lambda pair: order.index(pair[1])))

    @property
    def bytes(self) -> int:
        """What is kept beyond need."""
        with self._lock:
            return sum(weights.bytes for weights in self._recent.values())

    def clear(self) -> None:
        """Let go of what nobody holds."""
        with self._lock:
            self._recent.clear()

    def find_or_load(self, name: str, sha256: str, load: Callable[[], W]) -> W:
        """The weights of a file; one thread loads at a time, and what `load` raises is raised.

        A file that is refused is not read again for a minute: others wait while it is.
        """
        weights = self._find(sha256)
        if weights is None:
            with self._loading:
                weights = self._find(sha256)  # another thread may have wanted it, too
                if weights is None:
                    weights = self._load_unless_refused((name, sha256), load)
                    self._keep(sha256, weights)
        with self._lock:
            self._names[name] = sha256
        return weights

    def _load_unless_refused(self, key: tuple[str, str], load: Callable[[], W]) -> W:
        now = time.monotonic()
        self._refused = {of: (until, e) for of, (until, e) in self._refused.items() if until > now}
        if key in self._refused:
            known = self._refused[key][1]
            raise type(known)(known.message)
        try:
            return load()
        except JobError as error:
            if not error.retryable:
                self._refused[key] = now + _REFUSED_SECONDS, error.with_traceback(None)
            raise

    def _find(self, sha256: str) -> W | None:
        with self._lock:
            weights = self._held.get(sha256)
        if weights is not None:
            self._keep(sha256, weights)
        return weights

    def _keep(self, sha256: str, weights: W) -> None:
        with self._lock:
            self._held[sha256] = self._recent[sha256] = weights
            self._recent.move_to_end(sha256)
            left = sum(one.bytes for one in self._recent.values())
            while left > self._limit and self._recent:
                left -= self._recent.popitem(last=False)[1].bytes


def refuse_without_memory(error: Exception, what: str) -> None:
    """Say of an error that names no fault of the file that it is none.

    Raises:
        OutOfMemory: the worker's memory did not suffice; another attempt may have more.
    """
    if is_out_of_memory(error):
        raise OutOfMemory(f"There is no memory to load {what}.") from error


def file_fault(path: Path) -> str | None:
    """Why this is no whole safetensors file, as half a sentence; only its header is read."""
    try:
        with path.open("rb") as file:
            read_header(file, path.stat().st_size)
    except OSError as error:
        return f"cannot be read: {error.strerror}"
    except NotSafetensors as error:
        return f"is not a safetensors file: {error}"
    return None
