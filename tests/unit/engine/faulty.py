"""A device that fails on demand: the only place where faults are injected."""

import threading
from collections.abc import Callable
from typing import Any, TypeVar

import torch

from worker.engine.device import Device, WorkKind

T = TypeVar("T")


class FaultyDevice(Device):
    """A CPU on which each piece of work may be made to fail or to come out wrong.

    `fault` gets the kind of work and its result; what it returns is taken for the result.
    """

    def __init__(self, fault: Callable[[WorkKind, Any], Any]) -> None:
        super().__init__(torch.device("cpu"))
        self._fault = fault

    def run(self, kind: WorkKind, work: Callable[[], T]) -> T:
        """Do the work, then let the fault have it."""
        result: T = self._fault(kind, work())
        return result


def out_of_memory() -> torch.OutOfMemoryError:
    """As CUDA's allocator raises it."""
    return torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")


def poisoned() -> RuntimeError:
    """As every call fails after a kernel has read where it must not."""
    return RuntimeError("CUDA error: an illegal memory access was encountered")


class Hang:
    """Blocks one piece of work until the test lets it go."""

    def __init__(self) -> None:
        self.armed = False
        self.begun = threading.Event()
        self.release = threading.Event()

    def __call__(self, kind: WorkKind, result: Any) -> Any:
        if self.armed and kind == "tick":
            self.begun.set()
            self.release.wait(60)
        return result
