"""One image in flight on a UNet: its latents, its scheduler, its generator, its place."""

from dataclasses import dataclass
from typing import Any

import torch

from worker.engine.interface import ImageRequest
from worker.engine.prompts import TextEmbedding


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
    """(calls,) on the CPU: one UNet call each; Heun makes two per step, PNDM one more in all."""
    steps: int
    """Inference steps that these calls make up."""
    latents: torch.Tensor
    """(1, channels, height / 8, width / 8)."""
    prompt: TextEmbedding
    negative: TextEmbedding | None
    """None: one half only."""
    time_condition: torch.Tensor | None = None
    """(1, width): the guidance scale as an embedding, for latent consistency models."""
    calls: int = 0
    """UNet calls made."""
    error: Exception | None = None
    """Why its own part of the last tick failed."""
    seen: "Prediction | None" = None
    """The last call's input and output, kept only while previews are wanted."""
    dtype: str = ""
    """Precision it was made in, as receipts name it."""
    rescued: bool = False
    """Made alone, in full precision, because the model's own gave no picture."""

    @property
    def step(self) -> int:
        """Inference steps done."""
        return self.calls * self.steps // len(self.timesteps)

    @property
    def finished(self) -> bool:
        """Whether all calls were handed to the device."""
        return self.calls >= len(self.timesteps)


@dataclass(frozen=True)
class Prediction:
    """One UNet call as one row saw it, for its preview."""

    sample: torch.Tensor
    """(1, channels, h, w): the scaled input, whose signal and noise variances add up to one."""
    output: torch.Tensor
    """(1, channels, h, w): the guided output."""
    timestep: float
