"""The torch device, and the one door through which all work reaches it.

Every computation of the engine goes through `Device.run`, so a test injects a fault (out of
memory, NaN, a hang, a poisoned context) by subclassing `Device` and nowhere else.
"""

import os
import platform
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Generic, Literal, Protocol, TypeVar

import torch

WorkKind = Literal["encode", "tick", "decode"]

T = TypeVar("T")


class Mark(Protocol):
    """A point in the device's queue."""

    def wait(self) -> None:
        """Block until the device has passed it."""

    def seconds_since(self, earlier: Any) -> float:
        """Device time between two marks; both must have passed."""


@dataclass(frozen=True)
class Measured(Generic[T]):
    """Work in the device's queue between two marks."""

    value: Callable[[], T]
    """Gives the result; called once the work is done."""
    begin: Mark
    end: Mark

    def settle(self) -> tuple[T, float]:
        """Wait for the work; return its value and its device seconds."""
        self.end.wait()
        return self.value(), self.end.seconds_since(self.begin)


class Device:
    """A CPU: work is done when the call returns."""

    runs_ahead = 0
    """Pieces of work to keep queued while the host prepares the next."""

    def __init__(self, torch_device: torch.device) -> None:
        self.torch_device = torch_device

    @property
    def name(self) -> str:
        """The device's marketing name, for receipts."""
        return _cpu_name()

    @property
    def cpu_threads(self) -> int | None:
        """Threads of one kernel, where they are part of how sums are split."""
        return torch.get_num_threads()

    def run(self, kind: WorkKind, work: Callable[[], T]) -> T:
        """Do one piece of work. `kind` says which, for tests that make some of it fail."""
        del kind
        return work()

    def mark(self) -> Mark:
        """A point in the device's queue, now."""
        return _HostMark()

    def to_host(self, tensor: torch.Tensor) -> torch.Tensor:
        """Start copying to the host; the copy may be read after the next mark has passed."""
        return tensor.cpu()

    def from_host(self, tensor: torch.Tensor) -> torch.Tensor:
        """Start copying to the device."""
        return tensor

    def is_out_of_memory(self, error: BaseException) -> bool:
        """Whether the error says that memory did not suffice."""
        if isinstance(error, torch.OutOfMemoryError | MemoryError):
            return True
        text = str(error)
        return isinstance(error, RuntimeError) and any(sign in text for sign in _NO_MEMORY)

    def is_fatal(self, error: BaseException) -> bool:
        """Whether nothing will work on this device in this process any more."""
        if self.is_out_of_memory(error):
            return False
        text = str(error)
        return isinstance(error, torch.AcceleratorError) or any(
            sign in text for sign in ("CUDA error:", "CUBLAS_STATUS", "CUDNN_STATUS")
        )

    @property
    def allocated_bytes(self) -> int | None:
        """What torch holds there for tensors, in this process; None: it does not count."""
        return None

    def release_memory(self) -> None:
        """Give cached blocks back."""

    def close(self) -> None:
        """Let go of the device."""


class CudaDevice(Device):
    """A CUDA device: work is queued on one stream, and one piece is kept ahead of the host.

    One stream on purpose: cuBLAS does not promise the same bits when several streams share a
    handle, and intervals on one stream never overlap, so the bill adds up.
    """

    runs_ahead = 1

    def __init__(self, torch_device: torch.device) -> None:
        super().__init__(torch_device)
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.backends.cudnn.benchmark = False
        torch.backends.cudnn.deterministic = True
        torch.cuda.set_device(torch_device)

    @property
    def name(self) -> str:
        """For example `NVIDIA H200`."""
        return torch.cuda.get_device_name(self.torch_device)

    @property
    def cpu_threads(self) -> int | None:
        """Not part of the bits."""
        return None

    def mark(self) -> Mark:
        """An event on the current stream."""
        return _CudaMark()

    def to_host(self, tensor: torch.Tensor) -> torch.Tensor:
        """Copy into page-locked memory without waiting."""
        host = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
        host.copy_(tensor, non_blocking=True)
        return host

    def from_host(self, tensor: torch.Tensor) -> torch.Tensor:
        """Copy from page-locked memory without waiting."""
        return tensor.pin_memory().to(self.torch_device, non_blocking=True)

    @property
    def allocated_bytes(self) -> int | None:
        """All models of the process together."""
        return torch.cuda.memory_allocated(self.torch_device)

    def release_memory(self) -> None:
        """Empty torch's caching allocator."""
        torch.cuda.empty_cache()


def open_device(name: str | None) -> Device:
    """The device called `name`, or the best one there is."""
    if name is None:
        name = "cuda" if torch.cuda.is_available() else "cpu"
    torch_device = torch.device(name)
    if torch_device.type == "cuda" and torch_device.index is None:
        # Torch sets no device without a number.
        torch_device = torch.device("cuda", torch.cuda.current_device())
    return CudaDevice(torch_device) if torch_device.type == "cuda" else Device(torch_device)


_NO_MEMORY = ("not enough memory", "out of memory", "_STATUS_ALLOC_FAILED")
"""How torch's CPU allocator, the CUDA runtime and its libraries put it."""


class _HostMark:
    def __init__(self) -> None:
        self._at = time.perf_counter()

    def wait(self) -> None:
        """On the host, what was called is done."""

    def seconds_since(self, earlier: "_HostMark") -> float:
        """Seconds between the two."""
        return self._at - earlier._at


class _CudaMark:
    def __init__(self) -> None:
        self._event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        self._event.record()

    def wait(self) -> None:
        """Wait for the event alone, not for what was queued behind it."""
        self._event.synchronize()

    def seconds_since(self, earlier: "_CudaMark") -> float:
        """Seconds between the two."""
        return float(earlier._event.elapsed_time(self._event)) / 1000


def _cpu_name() -> str:
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as lines:
            for line in lines:
                if line.startswith("model name"):
                    return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()
