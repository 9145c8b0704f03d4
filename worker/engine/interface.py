"""What every engine offers and what it takes and gives: plain data, no tensors, no torch.

An engine serves one model. Any number of threads submit images; the engine's own thread owns the
device. A job of n images is n requests.
"""

from collections.abc import Callable, Mapping
from concurrent.futures import Future
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from shared.core.errors import InvalidInput, JobError
from shared.core.prompt_weights import PromptSyntax
from shared.images.fitting import repaints

QueueClass = Literal["interactive", "bulk"]
"""Interactive rows run first; bulk rows fill what is left and pause between ticks if they must."""


Upscaler = Literal["lanczos", "latent"]
"""How an image gets larger: its pixels by a windowed sinc, or its latents bilinearly."""


class Canceled(Exception):
    """The caller took the image back, or the engine was closed, before the image was done."""

    def __init__(self, message: str = "The image was canceled.") -> None:
        super().__init__(message)


class EngineClosed(RuntimeError):
    """`submit` was called before `load`, or after `close`."""


@dataclass(frozen=True)
class Lora:
    """A LoRA of an image: which file, and how strongly it acts."""

    name: str
    sha256: str
    """Of the file, in hexadecimal."""
    scale: float
    path: Path
    """The safetensors file on this machine."""


@dataclass(frozen=True)
class Control:
    """A ControlNet of an image: what it sees, how strongly and when it acts."""

    name: str
    sha256: str
    """Over its files, in hexadecimal."""
    path: Path
    """On this machine: a folder with config and weights, or one file of weights in it."""
    image: Image.Image = field(compare=False)
    """RGB; resized to width × height as diffusers' ControlNet pipelines do."""
    scale: float = 1.0
    start: float = 0.0
    """0 … 1: where in the steps it begins to act."""
    end: float = 1.0
    """0 … 1: where it ends."""


@dataclass(frozen=True)
class Hires:
    """A second pass: the image is upscaled, and denoised again as an image from an image."""

    width: int
    """Pixels, of the final image."""
    height: int
    """Pixels, of the final image."""
    strength: float
    """(0, 1]: the share of the schedule that runs."""
    steps: int
    """Inference steps of the whole schedule."""
    upscaler: Upscaler
    batch_size: int | None = None
    """As of the request, for this pass."""


@dataclass(frozen=True)
class Mask:
    """Which part of the initial image is regenerated."""

    image: Image.Image
    """Grey (mode L), width × height of the request: 255 is repainted, 0 stays. The network takes
    it in black and white; where it is grey the finished image is a mixture."""
    padding: int | None = None
    """Pixels: with it only the region around the mask is made, at the request's whole size, with so
    much of what surrounds it, and put back in its place."""
    preserve: bool = True
    """Whether the finished image is the initial one outside the mask; else that went through the
    VAE. With `padding` it always is."""
    start: Image.Image | None = None
    """The initial image as the network starts from it, if that is not the one that stays."""


@dataclass(frozen=True)
class Reference:
    """An image that the model looks at alongside the prompt, and how much it counts."""

    image: Image.Image
    """RGB, any size."""
    sha256: str
    """Of the file that it comes from, in hexadecimal: by it an engine knows it again."""
    scale: float


@dataclass(frozen=True)
class ImageRequest:
    """One image to make. With the model's facts it determines the image's bytes."""

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
    """Above 1 the network runs an unconditional half too, unless the model embeds the guidance."""
    scheduler: str
    """A key of `shared.core.schedulers.SCHEDULERS`."""
    strength: float | None = None
    """(0, 1], with `init_image`: the share of the schedule that runs."""
    init_image: Image.Image | None = None
    """RGB, any size; resized to width × height as diffusers' image-to-image pipelines do."""
    upscaler: Upscaler = "lanczos"
    """How `init_image` gets that size: with ``latent`` it is encoded at its own."""
    init_latents: Any = field(default=None, compare=False)
    """In place of `init_image` between two passes: an engine's own, of width × height."""
    queue_class: QueueClass = "interactive"
    previews: bool = False
    """Whether step updates carry a small image."""
    batch_size: int | None = None
    """The batch size whose bits the image is to have, to reproduce it; None: the model's own."""
    cpu_threads: int | None = None
    """Threads of a CPU kernel, likewise; without meaning on a GPU."""
    true_cfg_scale: float | None = None
    """Of the families whose `guidance_scale` may be embedded: how far to go from the negative half,
    at the cost of a second call. 1 turns it off; None is the model's own."""
    loras: tuple[Lora, ...] = ()
    """Added in this order, which is part of the bytes."""
    controls: tuple[Control, ...] = ()
    """In both passes."""
    mask: Mask | None = None
    """With `init_image`, which then is of width × height, too."""
    references: tuple[Reference, ...] = ()
    """Of models with an IP-Adapter, for both passes; their order is part of the bytes."""
    prompt_syntax: PromptSyntax = "plain"
    """Whether both prompts have weights (`shared.core.prompt_weights`)."""
    long_prompt: bool = False
    """Whether both prompts are read to their ends, as several chunks of tokens."""
    hires: Hires | None = None
    """Makes it two passes, each with noise redrawn from the seed; width and height are those of
    the first."""

    @property
    def from_image(self) -> bool:
        """Whether it begins with an image and not with noise alone."""
        return self.init_image is not None or self.init_latents is not None

    def second_pass(
        self, image: Image.Image | None = None, latents: object = None
    ) -> "ImageRequest":
        """The request of the second pass, from what the first one made: its image of any size, or
        its latents, upscaled."""
        hires = self.hires
        if hires is None:
            raise ValueError("This image has one pass.")
        if image is not None:
            image = image.resize((hires.width, hires.height), Image.Resampling.LANCZOS)
        return replace(
            self,
            width=hires.width,
            height=hires.height,
            steps=hires.steps,
            strength=hires.strength,
            init_image=image,
            upscaler="lanczos",
            init_latents=latents,
            batch_size=hires.batch_size or self.batch_size,
            hires=None,
        )


def check_mask(request: ImageRequest, inpainting: bool, model: str) -> None:
    """Refuse a mask that this model cannot take, or that fits no initial image.

    Raises:
        InvalidInput: in one sentence.
    """
    mask, start = request.mask, request.init_image
    if mask is None:
        return
    if not inpainting:
        raise InvalidInput(f"Model {model!r} does not support inpainting.")
    if start is None:
        raise InvalidInput("A mask and an initial image go together.")
    if request.hires is not None:
        raise InvalidInput("A mask and hires do not go together.")
    if not (mask.image.size == start.size == (request.width, request.height)):
        raise InvalidInput("The mask, the initial image and the image must be of one size.")
    if not repaints(mask.image):
        raise InvalidInput("The mask leaves nothing to repaint.")


@dataclass(frozen=True)
class StepUpdate:
    """How far an image is. Updates come at most about four times a second, the last one always."""

    step: int
    """Steps done, 1 … `steps`."""
    steps: int
    """Steps that this image takes, in both passes: fewer than asked for with `strength` below 1."""
    preview_webp: bytes | None
    """The predicted image at latent resolution as WebP, if previews were asked for."""
    work_done: float | None = None
    """The share of all pixels × steps, where passes differ in size."""

    @property
    def fraction(self) -> float:
        """How much of the image is done, 0 … 1."""
        return self.step / self.steps if self.work_done is None else self.work_done


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
    batch_size: int
    """The batch size whose bits the image has: it ran at this one or at one that agrees with it."""
    torch_version: str
    diffusers_version: str
    cuda_version: str | None
    cpu_threads: int | None = None
    """Threads of a CPU kernel; on a GPU None. Sums are split by it, so it is part of the bits."""
    loras: tuple[Lora, ...] = ()
    controls: tuple[Control, ...] = ()
    references: tuple[Reference, ...] = ()
    ip_adapter: str | None = None
    """SHA-256 of the files of the IP-Adapter that read the references."""
    speed: Mapping[str, Any] = field(default_factory=dict)
    """The model's speed settings that change bits, by their names in `models.toml`."""
    agreeing_sizes: tuple[int, ...] = ()
    """Batch sizes, `batch_size` among them, that were proven to give the same bits."""
    notes: tuple[str, ...] = ()
    """What went otherwise than planned: rows shrunk for want of memory, VAE upcast, …"""


@dataclass(frozen=True)
class Pass:
    """How one pass of an image was made."""

    facts: RunFacts
    steps: int
    """Inference steps that it took: fewer than asked for with `strength` below 1."""


@dataclass(frozen=True)
class GeneratedImage:
    """A finished image."""

    pixels: NDArray[np.uint8]
    """(height, width, 3), RGB."""
    facts: RunFacts
    """Of its first pass."""
    steps: int
    """Inference steps that it took, in both passes: fewer than asked for with `strength` below 1.
    """
    gpu_seconds: float
    """Its share of the ticks it was live in, plus its own text encoding and decoding."""
    started_at: float
    """`time.monotonic()` when its first tick was prepared."""
    finished_at: float
    """`time.monotonic()` when its pixels were on the host."""
    hires: Pass | None = None
    """Its second pass."""


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
    batch_size: int
    """Rows of the largest batch at the model's default size."""
    cpu_threads: int | None = None
    """Threads of a CPU kernel."""
    memory_bytes: int = 0
    """What its weights take on the device."""


@dataclass(frozen=True)
class TickTime:
    """One line of the warm-up's table."""

    width: int
    height: int
    batch_size: int
    seconds: float
    """Median time of one tick."""


@dataclass(frozen=True)
class WarmUpReport:
    """What the warm-up did and measured."""

    seconds: float
    sizes: tuple[tuple[int, int], ...]
    batch_size: int
    """Rows of the largest batch."""
    tick_times: tuple[TickTime, ...]
    """Measured tick times; more than one row count only where the engine chose it itself."""
    agreeing_sizes: tuple[int, ...] = ()
    """Batch sizes that were proven to give the same bits, at the model's default size."""
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
    steps_by_queue_class: Mapping[str, int] = field(default_factory=dict)
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
        """Queue one image; reads the files of LoRAs and ControlNets that are not loaded, else
        returns at once. Thread-safe.

        `on_step` runs on a thread of the engine's that does nothing else, so it may block for a
        moment; one late update may still arrive while the future resolves.

        Raises:
            InvalidInput: the request cannot be carried out by this model.
            LoraUnavailable: a LoRA's file cannot be read or does not fit the model.
            ControlNetUnavailable: nor a ControlNet's.
            DeviceLost: the device failed; the process must be replaced.
            EngineClosed: the engine is not loaded, or closed.
        """

    def truncated_part(
        self, prompt: str, prompt_syntax: PromptSyntax = "plain", long_prompt: bool = False
    ) -> str | None:
        """The end of the prompt that the text encoders do not read, or None. Thread-safe."""

    @property
    def model(self) -> ModelFacts:
        """The loaded model."""

    @property
    def allocated_bytes(self) -> int | None:
        """What torch has allocated on the device, for all engines of the process; None on a CPU."""

    @property
    def loras(self) -> dict[str, str]:
        """Name -> SHA-256 of the file, of the LoRAs that are loaded."""

    @property
    def busy_seconds(self) -> float:
        """Seconds the device worked for images, canceled ones included, warm-up excluded."""

    @property
    def counters(self) -> EngineCounters:
        """Totals since the start."""

    def close(self) -> None:
        """Stop: unfinished images raise `Canceled`. Idempotent."""
