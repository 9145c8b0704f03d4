"""What every engine offers and what it takes and gives: plain data, no tensors, no torch.

An engine serves one model. Any number of threads submit images; the engine's own thread owns the
device. A job of n images is n requests.
"""

from collections.abc import Callable, Mapping
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from shared.core.errors import JobError

Lane = Literal["interactive", "bulk"]
"""Interactive rows run first; bulk rows fill what is left and pause between ticks if they must."""


@dataclass(frozen=True)
class ImageRequest:
    """One image to make. With the model's facts it determines the picture's bytes."""

    prompt: str
    negative_prompt: str | None
    seed: int
    """0 … 2^53-1; seeds the row's own CPU generator, from which all of its noise is drawn."""
    width: int
    """Pixels, a multiple of 8."""
    height: int
    """Pixels, a multiple of 8."""
    steps: int
    """Inference steps of the whole schedule; with `strength` only the last part of it runs."""
    guidance_scale: float
    """Above 1 the UNet runs an unconditional half too, unless the model embeds the guidance."""
    scheduler: str
    """A key of `shared.core.schedulers.SCHEDULERS`."""
    strength: float | None = None
    """(0, 1], with `init_image`: the share of the schedule that runs."""
    init_image: Image.Image | None = None
    """RGB, any size; resized to width × height as diffusers' image-to-image pipelines do."""
    lane: Lane = "interactive"
    previews: bool = False
    """Whether step updates carry a small picture."""
    rows: int | None = None
    """Fixed batch shape to run at, to reproduce an image; None is the model's own."""


@dataclass(frozen=True)
class StepUpdate:
    """How far an image is. Updates come at most about four times a second, the last one always."""

    step: int
    """Steps done, 1 … `steps`."""
    steps: int
    """Steps that this image takes: fewer than asked for with `strength` below 1."""
    preview_webp: bytes | None
    """The predicted picture at latent resolution as WebP, if previews were asked for."""


@dataclass(frozen=True)
class RunFacts:
    """What only the engine knows and a receipt needs to make the same bytes again."""

    model: str
    content_hash: str
    """SHA-256 over the checkpoint's config and weight files (see `checkpoint.content_hash`)."""
    revision: str | None
    scheduler_class: str
    scheduler_config: Mapping[str, Any]
    """The scheduler's whole config, as JSON values."""
    dtype: str
    device: str
    torch_version: str
    diffusers_version: str
    cuda_version: str | None
    rows: int
    """The fixed batch shape that the image ran at."""
    cpu_threads: int | None = None
    """Threads of a CPU kernel; on a GPU None. Sums are split by it, so it is part of the bits."""
    speed: Mapping[str, Any] = field(default_factory=dict)
    """The model's speed settings that change bits, by their names in `models.toml`."""
    notes: tuple[str, ...] = ()
    """What went otherwise than planned: rows shrunk for want of memory, VAE upcast, …"""


@dataclass(frozen=True)
class GeneratedImage:
    """A finished image."""

    pixels: NDArray[np.uint8]
    """(height, width, 3), RGB."""
    facts: RunFacts
    steps: int
    """Inference steps that it took: fewer than asked for with `strength` below 1."""
    gpu_seconds: float
    """Its share of the ticks it was live in, plus its own text encoding and decoding."""
    started_at: float
    """`time.monotonic()` when its first tick was prepared."""
    finished_at: float
    """`time.monotonic()` when its pixels were on the host."""


@dataclass(frozen=True)
class ModelFacts:
    """The loaded model."""

    name: str
    content_hash: str
    revision: str | None
    family: str
    """``sd``, ``sdxl``, ``lcm``, ``flow`` and ``pipeline`` (any other, one at a time; see
    `shared.core.schedulers`) or ``simulated``."""
    dtype: str
    device: str
    rows: int
    """Rows at the model's default size."""
    memory_bytes: int = 0
    """What its weights take on the device."""


@dataclass(frozen=True)
class TickTime:
    """One line of the warm-up's table."""

    width: int
    height: int
    rows: int
    seconds: float
    """Median time of one tick."""


@dataclass(frozen=True)
class WarmUpReport:
    """What the warm-up did and measured."""

    seconds: float
    sizes: tuple[tuple[int, int], ...]
    rows: int
    tick_times: tuple[TickTime, ...]
    """Measured tick times; more than one row count only where the engine chose it itself."""
    preview_error: float | None = None
    """Root mean square error of the latent-to-RGB fit, in 0 … 1 of full scale."""


@dataclass(frozen=True)
class EngineCounters:
    """Totals since the start, for metrics."""

    ticks: int = 0
    live_rows: int = 0
    """Rows computed for an image, summed over ticks."""
    padded_rows: int = 0
    """Rows computed for nobody, summed over ticks."""
    steps_by_lane: Mapping[str, int] = field(default_factory=dict)
    pauses: int = 0
    """How often a started bulk row had to wait."""
    out_of_memory_shrinks: int = 0
    images: int = 0
    canceled: int = 0


class Ticket(Protocol):
    """A submitted image."""

    @property
    def future(self) -> "Future[GeneratedImage]":
        """Resolves to the image, or raises `Canceled` or one of `shared.core.errors`.

        Callbacks added to it run on the engine's thread: keep them short.
        """

    @property
    def gpu_seconds(self) -> float:
        """Device seconds charged to the image; complete once the future is done, however it is."""

    def cancel(self) -> None:
        """Take the image back; the future raises `Canceled` within one tick. Idempotent."""


StepCallback = Callable[[StepUpdate], None]
FaultCallback = Callable[[JobError], None]


class Engine(Protocol):
    """One loaded model on one device."""

    def load(self) -> None:
        """Load the checkpoint.

        Raises:
            ModelUnavailable: with one sentence that says why.
        """

    def warm_up(self) -> WarmUpReport:
        """Make a real image at every configured size; the engine is ready afterwards."""

    def submit(self, request: ImageRequest, on_step: StepCallback | None = None) -> Ticket:
        """Queue one image; returns at once. Thread-safe.

        `on_step` runs on a thread of the engine's that does nothing else, so it may block for a
        moment; one late update may still arrive while the future resolves.

        Raises:
            InvalidInput: the request cannot be carried out by this model.
            DeviceLost: the device failed; the process must be replaced.
            EngineClosed: the engine is not loaded, or closed.
        """

    def truncated_part(self, prompt: str) -> str | None:
        """The end of the prompt that the text encoders do not read, or None. Thread-safe."""

    @property
    def model(self) -> ModelFacts:
        """The loaded model."""

    @property
    def allocated_bytes(self) -> int | None:
        """What torch has allocated on the device, for all engines of the process; None on a CPU."""

    @property
    def busy_seconds(self) -> float:
        """Seconds the device worked for images, canceled ones included, warm-up excluded."""

    @property
    def counters(self) -> EngineCounters:
        """Totals since the start."""

    def close(self) -> None:
        """Stop: unfinished images raise `Canceled`. Idempotent."""
