"""What the step loop needs of a model, without knowing what computes it.

Two kinds exist: real ones (torch) and the simulated one. All methods are called on the engine's
own thread, except where noted.
"""

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from shared.core.prompt_weights import PromptSyntax
from worker.engine.interface import ImageRequest, ModelFacts, RunFacts, WarmUpReport


@dataclass(frozen=True)
class Shape:
    """What rows of one tick must agree on; a row's bits depend on it and on nothing else."""

    width: int
    """Pixels."""
    height: int
    """Pixels."""
    batch_size: int
    """Rows of the batch whose bits these rows have: they are computed at this size, padded if need
    be, or at one that is known to agree with it."""
    variant: Hashable = None
    """Whatever else changes the model's call (halves of guidance, length of the texts, …): the
    backend's own affair."""
    eager: bool = False
    """Its network is not compiled, although the model's is: rows with LoRAs, ControlNets or
    references."""
    alone: bool = False
    """Its rows are computed at the shape's own size, whatever agrees with that: no one has proven
    it of their ControlNets."""
    cpu_threads: int | None = None
    """Threads of a CPU kernel, where a request names them; None: the model's own."""


def fewer_rows(rows: int) -> int:
    """What to try where that many do not fit: the next smaller power of two; 0 below one row."""
    return 1 << (rows - 1).bit_length() - 1 if rows > 1 else 0


T = TypeVar("T")

Work = Callable[[], tuple[T, float]]
"""Waits for something handed to the device; gives its value and the device seconds it took."""


def done(value: T, seconds: float) -> Work[T]:
    """Work that was done before it was handed back (CPU, simulation)."""
    return lambda: (value, seconds)


@dataclass(frozen=True)
class DecodedImage:
    """A decoded image on the host."""

    pixels: NDArray[np.uint8]
    """(height, width, 3), RGB; meaningless unless `sound`."""
    sound: bool
    """False if the image holds NaN or infinities, or is black throughout."""


Preview = Callable[[], NDArray[np.uint8]]
"""Waits for a small image from the device, (h, w, 3); called by the notifier's thread."""


class RowState(Protocol):
    """One image in flight: latents, scheduler, generator, or whatever stands for them."""

    @property
    def step(self) -> int:
        """Inference steps done so far."""

    @property
    def steps(self) -> int:
        """Inference steps in all."""

    @property
    def finished(self) -> bool:
        """Whether every tick it needs was handed to the device."""

    @property
    def error(self) -> Exception | None:
        """What its own part of the last tick failed with; its neighbours continued."""

    @property
    def rescued(self) -> bool:
        """Whether all of its image was made again alone, in full precision (`Backend.rescue`)."""


R = TypeVar("R", bound=RowState)


class Backend(Protocol[R]):
    """A loaded model on a device."""

    @property
    def model(self) -> ModelFacts:
        """The loaded model. Any thread."""

    @property
    def runs_ahead(self) -> int:
        """Pieces of work to keep in the device's queue while the host prepares the next one."""

    @property
    def exclusive(self) -> bool:
        """Whether a started row must end before another may start."""

    @property
    def variant_per_text(self) -> bool:
        """Whether each text may have a variant of its own: then all variants take turns as one."""

    def warm_up(self) -> WarmUpReport:
        """Run every configured size once, fit the previews, choose the rows."""

    def check(self, request: ImageRequest) -> None:
        """Raise `InvalidInput` for what this model cannot do. Any thread."""

    def load_weights(self, request: ImageRequest) -> object:
        """Load what the request's image needs besides the model; it stays while the result does.

        On the submitting thread, so that rows continue while files are read.

        Raises:
            LoraUnavailable: a file cannot be read or does not fit the model.
            ControlNetUnavailable: likewise.
        """

    @property
    def loras(self) -> dict[str, str]:
        """Name -> SHA-256 of the file, of the LoRAs that are loaded. Any thread."""

    def shape_of(self, request: ImageRequest) -> Shape:
        """The shape that the request runs at. Any thread."""

    def most(self, shape: Shape) -> int:
        """How many rows of a shape share a tick."""

    def steps_of(self, request: ImageRequest) -> int:
        """Inference steps that this pass of the request takes; 0 where none is left. Any thread."""

    def prepare(self, request: ImageRequest, shape: Shape) -> tuple[R, Work[None]]:
        """Encode the prompt and draw the first latents; the state may be used at once."""

    def tick(
        self, shape: Shape, rows: Sequence[R], alive: Callable[[], None] = lambda: None
    ) -> Work[int]:
        """Advance each row by one timestep; gives how many rows were computed, padding included.

        Once in a while it proves something first, and calls `alive` after each piece of that.
        """

    def preview(self, row: R) -> Preview | None:
        """A look at the row as the last tick left it."""

    def decode(self, row: R) -> Work[DecodedImage]:
        """Turn a finished row into pixels."""

    def upscale(self, row: R, width: int, height: int) -> Work[object]:
        """The latents of a finished row at another size in pixels, as `init_latents`."""

    def rescue(
        self, request: ImageRequest, row: R, alive: Callable[[], None]
    ) -> tuple[DecodedImage, str]:
        """Make an unsound image in higher precision: the image, and a note for the receipt.

        `row` is of the request's last pass; where all is made again, so are both passes.

        It may last as long as a whole image does, so it calls `alive` after each piece of work;
        what that raises ends it.

        Raises:
            NanOutput: full precision does not help either.
        """

    def facts(self, row: R, shape: Shape, notes: tuple[str, ...]) -> RunFacts:
        """What the receipt says about how the row was made."""

    def discard(self, row: R) -> None:
        """Forget a row that will not be continued."""

    def is_out_of_memory(self, error: BaseException) -> bool:
        """Whether fewer rows could help."""

    def is_fatal(self, error: BaseException) -> bool:
        """Whether the device is beyond use in this process."""

    @property
    def allocated_bytes(self) -> int | None:
        """What torch has allocated on the device; None where it does not count. Any thread."""

    def release_memory(self) -> None:
        """Give cached device memory back, after an out-of-memory error."""

    def shrink(self, shape: Shape) -> Shape | None:
        """The shape to use from now on where `shape` did not fit, or None at one row."""

    def truncated_part(
        self, prompt: str, prompt_syntax: PromptSyntax = "plain", long_prompt: bool = False
    ) -> str | None:
        """What the text encoders cut off. Any thread."""

    def close(self) -> None:
        """Release the device."""
