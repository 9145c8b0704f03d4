"""One image in flight: its latents, its scheduler, its generator, its conditions."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import torch

from worker.engine.adapters import Adapters
from worker.engine.controls import RowControl
from worker.engine.interface import ImageRequest
from worker.engine.references import References

Half = Literal["negative", "positive"]
"""One side of classifier-free guidance."""

Tensors = Mapping[str, torch.Tensor]
"""Inputs of a network by name."""


@dataclass(frozen=True)
class Kept:
    """What of an initial image stays: after each step the latents outside the mask are its own
    under the noise that the next step expects.
    """

    image: torch.Tensor
    """(1, …): its latents."""
    noise: torch.Tensor
    """(1, …): what the row began with."""
    mask: torch.Tensor
    """(1, …): 1 where it is repainted."""
    tables: Tensors = field(default_factory=dict)
    """On the host: what the scheduler has of noise levels."""


@dataclass(eq=False)
class Row:
    """Everything that an image's bits depend on, apart from the model and the batch's shape.

    A row that waits keeps all of this; it costs memory for the latents and no device time.
    """

    request: ImageRequest
    scheduler: Any
    """Its own instance, with state of its own."""
    step_options: dict[str, Any]
    """What the scheduler's `step` takes besides: its generator, eta."""
    timesteps: torch.Tensor
    """(calls,) on the CPU: one tick each; Heun makes two per step, PNDM one more in all."""
    steps: int
    """Inference steps that these calls make up."""
    latents: torch.Tensor
    """(1, …), as its family has them."""
    conditions: Mapping[Half, Tensors]
    """For each half of guidance what the network reads besides latents and timestep."""
    adapters: Adapters = ()
    """Its LoRAs."""
    references: References = ()
    """What of its reference images the network attends to."""
    controls: tuple[RowControl, ...] = ()
    """Its ControlNets."""
    kept: Kept | None = None
    """Of its initial image, if only a part of that is repainted."""
    calls: int = 0
    """Ticks made."""
    error: Exception | None = None
    """Why its own part of the last tick failed."""
    seen: "Prediction | None" = None
    """The last call's input and output, kept only while previews are wanted."""
    dtype: str = ""
    """Precision it was made in, as receipts name it."""
    compiled: Literal["off", "graphs", "inductor"] = "off"
    """How the network ran for it."""
    rescued: bool = False
    """Made alone, in full precision, because the model's own gave no image."""

    @property
    def step(self) -> int:
        return self.calls * self.steps // len(self.timesteps)

    @property
    def finished(self) -> bool:
        return self.calls >= len(self.timesteps)


@dataclass(frozen=True)
class Prediction:
    """One tick as one row saw it, for its preview."""

    sample: torch.Tensor
    """(1, …): what the network was given."""
    output: torch.Tensor
    """(1, …): what guidance made of its output."""
    timestep: float
