"""Sizes and hyperparameters of the demo model, on a CPU and on CUDA: the networks are the same, so
that either continues with what the other has learnt."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Final


@dataclass(frozen=True, slots=True)
class Preset:
    """Everything that decides what is trained and how; all sizes in pixels or channels."""

    processes: int
    """Single-threaded processes that share each step, or 1 where one device does it all."""
    image: int
    """Width and height of an image, a multiple of 8."""
    scenes: int
    """How many scenes are drawn and encoded for training."""
    latent_channels: int
    vae_channels: int
    vae_blocks: tuple[int, int, int, int]
    """Residual blocks of the VAE from full resolution down to an eighth."""
    vae_batch: int
    """Full images a step and process; at first, four times as many quarter crops."""
    vae_learning_rate: float
    text_channels: int
    text_layers: int
    text_steps: int
    text_batch: int
    unet_channels: tuple[int, ...]
    unet_layers: int
    unet_batch: int
    """Latents a step and process."""
    unet_learning_rate: float
    minutes_vae: float
    minutes_unet: float


CPU: Final = Preset(
    processes=2,
    image=128,
    scenes=20_000,
    latent_channels=8,
    vae_channels=32,
    vae_blocks=(1, 1, 2, 3),
    vae_batch=2,
    vae_learning_rate=8e-4,
    text_channels=128,
    text_layers=3,
    text_steps=1_500,
    text_batch=128,
    unet_channels=(64, 128, 176),
    unet_layers=1,
    unet_batch=32,
    unet_learning_rate=1e-3,
    minutes_vae=60,
    minutes_unet=66,
)

CUDA: Final = replace(
    CPU,
    processes=1,
    scenes=200_000,
    vae_batch=64,
    vae_learning_rate=1e-3,
    text_steps=3_000,
    text_batch=256,
    unet_batch=256,
    minutes_vae=5,
    minutes_unet=20,
)

TIMESTEPS: Final = 1_000
"""Length of the noise schedule."""
TOKENS: Final = 32
"""Tokens a caption is padded or cut to."""
EMPTY_CAPTIONS: Final = 0.1
"""Share of captions that are emptied in training, so that guidance has something to leave."""
SEED: Final = 20_240_607
"""The seed of everything that training draws."""
