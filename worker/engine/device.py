"""The torch device, and the one door through which all work reaches it.

Every computation of the engine goes through `Device.run`, so a test injects a fault (out of
memory, NaN, a hang, a poisoned context) by subclassing `Device` and nowhere else.
"""

import os
import platform
import time
from collections.abc import Callable
from functools import cached_property
from typing import Any, Literal, Protocol, TypeVar

import torch

from worker.engine.backend import DecodedImage, Work

WorkKind = Literal["encode", "tick", "decode", "prove"]

T = TypeVar("T")


class Mark(Protocol):
    """A point in the device's queue."""

    def wait(self) -> None:
        """Block until the device has passed it."""

    def seconds_since(self, earlier: Any) -> float:
        """Device time between two marks; both must have passed."""


def measured(value: Callable[[], T], begin: Mark, end: Mark) -> Work[T]:
    """Work in the device's queue between two marks; `value` gives its result once it is done."""

    def finish() -> tuple[T, float]:
        end.wait()
        return value(), end.seconds_since(begin)

    return finish


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

    def use_threads(self, count: int | None) -> None:
        """Let kernels of this thread have that many; None: as before."""
        if count is not None and count != torch.get_num_threads():
            torch.set_num_threads(count)

    @property
    def graph_pool(self) -> Any:
        """The memory that captured graphs share; None where none are captured."""
        return None

    def run(self, kind: WorkKind, work: Callable[[], T]) -> T:
        """Do one piece of work. `kind` says which, for tests that make some of it fail."""
        return work()

    def clock(self) -> float:
        """Seconds to compare work by: of this thread on its processor, so that neither a busy
        machine nor another model in this process counts."""
        return time.thread_time()

    def mark(self) -> Mark:
        """A point in the device's queue, now."""
        return _HostMark()

    def to_host(self, tensor: torch.Tensor) -> torch.Tensor:
        """Start copying to the host; the copy may be read after the next mark has passed.

        It is for the engine alone, which copies what it hands out: page-locked memory is scarce.
        """
        return tensor.cpu()

    def from_host(self, tensor: torch.Tensor) -> torch.Tensor:
        """Start copying to the device."""
        return tensor

    def is_out_of_memory(self, error: BaseException) -> bool:
        return is_out_of_memory(error)

    def is_fatal(self, error: BaseException) -> bool:
        """Whether nothing will work on this device in this process any more."""
        if self.is_out_of_memory(error):
            return False
        text = str(error)
        return isinstance(error, torch.AcceleratorError) or any(sign in text for sign in _LOST)

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

    def use_threads(self, count: int | None) -> None:
        """Nothing depends on them."""

    def clock(self) -> float:
        return time.perf_counter()

    @cached_property
    def graph_pool(self) -> Any:
        """Of this device, for all shapes: each of its own would keep its largest moment forever."""
        return torch.cuda.graph_pool_handle()

    def mark(self) -> Mark:
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
        torch.cuda.empty_cache()


def is_out_of_memory(error: BaseException) -> bool:
    """Whether the error says that memory did not suffice, on a device or on the host."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    text = str(error)
    return isinstance(error, RuntimeError) and any(sign in text for sign in _NO_MEMORY)


def open_device(name: str | None) -> Device:
    """The device called `name`, or the best one there is."""
    if name is None:
        name = "cuda" if torch.cuda.is_available() else "cpu"
    torch_device = torch.device(name)
    if torch_device.type == "cuda" and torch_device.index is None:
        # Torch sets no device without a number.
        torch_device = torch.device("cuda", torch.cuda.current_device())
    return CudaDevice(torch_device) if torch_device.type == "cuda" else Device(torch_device)


_NO_MEMORY = (
    "not enough memory",
    "can't allocate memory",
    "out of memory",
    "_STATUS_ALLOC_FAILED",
    "GET was unable to find an engine to execute this computation",
)
"""How torch's CPU allocator, the CUDA runtime and its libraries put it. The last is cuDNN's: it
tries its plans in turn, and where no workspace fits it says no more than that none worked."""

_LOST = (
    "CUDA error:",
    *(
        f"{library}_STATUS_{status}"
        for library in ("CUBLAS", "CUDNN")
        for status in ("EXECUTION_FAILED", "INTERNAL_ERROR", "MAPPING_ERROR", "NOT_INITIALIZED")
    ),
)
"""What a broken context says. A status such as `BAD_PARAM` or `NOT_SUPPORTED` is of one call only:
that fails its image, and not the process again and again."""


class _HostMark:
    def __init__(self) -> None:
        self._at = time.perf_counter()

    def wait(self) -> None:
        """On the host, what was called is done."""

    def seconds_since(self, earlier: "_HostMark") -> float:
        return self._at - earlier._at


class _CudaMark:
    def __init__(self) -> None:
        # Blocking: whoever waits sleeps, and does not spin on a core that encodes images.
        self._event = torch.cuda.Event(  # type: ignore[no-untyped-call]
            enable_timing=True, blocking=True
        )
        self._event.record()

    def wait(self) -> None:
        """Wait for the event alone, not for what was queued behind it."""
        self._event.synchronize()

    def seconds_since(self, earlier: "_CudaMark") -> float:
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


def start_download(image: torch.Tensor, device: Device) -> Callable[[], DecodedImage]:
    """Round a decoded image to bytes on the device and start copying it to the host.

    Args:
        image: (1, 3, height, width) in about -1 … 1. The rounding is that of diffusers: halved
            and shifted in the image's own dtype, scaled to 255 in float32, half to even.

    Returns:
        What gives the image, once the device has passed the mark set after this download.
    """
    unit = (image * 0.5 + 0.5).clamp(0, 1)
    pixels = (unit.permute(0, 2, 3, 1).float() * 255).round()
    sound = torch.isfinite(image).all() & (pixels.amax() > 0)
    host, is_sound = device.to_host(pixels.to(torch.uint8)), device.to_host(sound)

    def downloaded() -> DecodedImage:
        # A copy: what is downloaded is page-locked.
        return DecodedImage(host[0].numpy().copy(), bool(is_sound))

    return downloaded
