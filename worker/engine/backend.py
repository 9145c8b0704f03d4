"""What the step loop needs of a model, without knowing what computes it.

Two kinds exist: real ones (torch) and the simulated one. All methods are called on the engine's
own thread, except where noted.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from worker.engine.interface import ImageRequest, ModelFacts, RunFacts, WarmUpReport


@dataclass(frozen=True)
class Shape:
    """What rows of one tick must agree on; a row's bits depend on it and on nothing beside it."""

    width: int
    """Pixels."""
    height: int
    """Pixels."""
    guided: bool
    """Whether the UNet runs two halves per row (classifier-free guidance)."""
    rows: int
    """Rows of the batch, padded ones included."""


T_co = TypeVar("T_co", covariant=True)


class Work(Protocol[T_co]):
    """Something handed to the device, perhaps not yet done."""

    def settle(self) -> tuple[T_co, float]:
        """Wait for it; return its value and the device seconds it took."""


@dataclass(frozen=True)
class Done(Generic[T_co]):
    """Work that was done before it was handed back (CPU, simulation)."""

    value: T_co
    seconds: float

    def settle(self) -> tuple[T_co, float]:
        """The value and the seconds, at once."""
        return self.value, self.seconds


@dataclass(frozen=True)
class Picture:
    """A decoded image on the host."""

    pixels: NDArray[np.uint8]
    """(height, width, 3), RGB; meaningless unless `sound`."""
    sound: bool
    """False if the picture holds NaN or infinities, or is black throughout."""


class Preview(Protocol):
    """A small picture on its way from the device; read on the notifier's thread."""

    def rgb(self) -> NDArray[np.uint8]:
        """Wait for it: (h, w, 3)."""


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
        """What its own part of the last tick failed with; its neighbours went on."""


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

    def warm_up(self) -> WarmUpReport:
        """Run every configured size once, fit the previews, choose the rows."""

    def check(self, request: ImageRequest) -> None:
        """Raise `InvalidInput` for what this model cannot do. Any thread."""

    def shape_of(self, request: ImageRequest) -> Shape:
        """The shape that the request runs at. Any thread."""

    def prepare(self, request: ImageRequest, shape: Shape) -> tuple[R, Work[None]]:
        """Encode the prompt and draw the first latents; the state may be used at once."""

    def tick(self, shape: Shape, rows: Sequence[R]) -> Work[None]:
        """Advance each row by one call of the UNet."""

    def preview(self, row: R) -> Preview | None:
        """A look at the row as the last tick left it."""

    def decode(self, row: R) -> Work[Picture]:
        """Turn a finished row into pixels."""

    def rescue(
        self, request: ImageRequest, row: R, alive: Callable[[], None]
    ) -> tuple[Picture, str]:
        """Make an unsound image in higher precision: the picture, and a note for the receipt.

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

    def truncated_part(self, prompt: str) -> str | None:
        """What the text encoders cut off. Any thread."""

    def close(self) -> None:
        """Release the device."""
