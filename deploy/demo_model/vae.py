"""Trains the autoencoder that turns images into latents of an eighth of their size."""

from __future__ import annotations

from dataclasses import dataclass
from math import cos, pi
from pathlib import Path
from typing import cast

import numpy as np
import torch
from diffusers import AutoencoderTiny
from torch import Tensor
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from deploy.demo_model import state
from deploy.demo_model.preset import SEED, Preset
from deploy.demo_model.process_group import ProcessGroup

_LATENT_NOISE = 0.1
"""Deviation of the noise added to latents in training, whose own deviation is held at 1. It
makes the decoder forgive the small errors that a denoised latent always has."""
_CROPS_UNTIL = 0.5
"""Share of the budget spent on crops: the same work per step shows four times the scenes."""
_ENCODER_UNTIL = 0.5
"""Share of the budget after which the encoder, and with it what latents mean, stays as it is.
The decoder has the harder task and learns on from fixed latents; the UNet need not wait."""
_AVERAGE_DECAY = 0.998
_WARM_UP_STEPS = 100
_LOG_EVERY = 200


@dataclass(frozen=True, slots=True)
class TrainedVae:
    """The averaged weights of a run so far."""

    model: AutoencoderTiny
    steps: int
    minutes: float


def build(preset: Preset) -> AutoencoderTiny:
    """An untrained autoencoder; its down-factor is 8, as Stable Diffusion's."""
    channels = (preset.vae_channels,) * 4
    return AutoencoderTiny(
        latent_channels=preset.latent_channels,
        encoder_block_out_channels=channels,
        decoder_block_out_channels=channels,
        num_encoder_blocks=preset.vae_blocks,
        num_decoder_blocks=preset.vae_blocks[::-1],
        scaling_factor=1.0,
    )


def to_pixels(images: np.ndarray, device: torch.device) -> Tensor:
    """uint8 images [n, height, width, 3] as floats [n, 3, height, width] in -1 to 1."""
    floats = torch.from_numpy(np.array(images, order="C")).to(device).permute(0, 3, 1, 2)
    return floats.float().div(127.5).sub(1).contiguous(memory_format=torch.channels_last)


class _Run:
    """The autoencoder in training, its optimizer and how far they are."""

    def __init__(
        self, preset: Preset, start: AutoencoderTiny | None, work: Path, device: torch.device
    ) -> None:
        self._model = build(preset).to(device, memory_format=torch.channels_last)
        if start is not None:
            self._model.load_state_dict(start.state_dict())
        self._average = AveragedModel(
            self._model,
            multi_avg_fn=get_ema_multi_avg_fn(_AVERAGE_DECAY),  # type: ignore[no-untyped-call]
        )
        self._parameters = list(self._model.parameters())
        self._optimizer = torch.optim.AdamW(self._parameters, betas=(0.9, 0.95), weight_decay=1e-4)
        self._peak_rate = preset.vae_learning_rate
        self._file = work / "vae.pt"
        self.step = 0
        self.spent = 0.0
        if (saved := state.load(self._file, device)) is not None:
            self._model.load_state_dict(saved["model"])
            self._average.load_state_dict(saved["average"])
            self._optimizer.load_state_dict(saved["optimizer"])
            self.step, self.spent = saved["step"], saved["spent"]

    def keep(self, spent: float) -> None:
        state.save(
            {
                "model": self._model.state_dict(),
                "average": self._average.state_dict(),
                "optimizer": self._optimizer.state_dict(),
                "step": self.step,
                "spent": spent,
            },
            self._file,
        )

    def freeze_encoder(self) -> None:
        """From here on the encoder is its average, in the run and in what comes of it."""
        settled = cast(AutoencoderTiny, self._average.module).encoder
        self._model.encoder.load_state_dict(settled.state_dict())
        self._model.encoder.requires_grad_(False)

    def learn(self, batch: Tensor, rate: float, group: ProcessGroup) -> float:
        """One step on the team's batches; the mean absolute pixel error of this process's own."""
        with torch.autocast(batch.device.type, torch.bfloat16):
            latents = self._model.encode(batch).latents
            noisy = latents + _LATENT_NOISE * torch.randn_like(latents)
            decoded = self._model.decode(noisy).sample
        pixel_error, loss = _loss(batch, decoded.float(), latents.float())
        for parameters in self._optimizer.param_groups:
            parameters["lr"] = self._peak_rate * min(1.0, (self.step + 1) / _WARM_UP_STEPS) * rate
        self._optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        group.average_gradients(self._parameters)
        torch.nn.utils.clip_grad_norm_(self._parameters, 1.0)
        self._optimizer.step()
        self._average.update_parameters(self._model)
        self.step += 1
        return pixel_error


def train(
    preset: Preset,
    images: np.ndarray,
    *,
    start: AutoencoderTiny | None,
    work: Path,
    device: torch.device,
    minutes: float,
    group: ProcessGroup,
) -> TrainedVae:
    """Trains on uint8 images [n, size, size, 3] until `minutes` are spent in all runs of `work`,
    the first of which continues from `start`."""
    run = _Run(preset, start, work, device)
    clock = state.Clock(minutes, run.spent)
    frozen = False
    pixel_error = 0.0

    def tell() -> str:
        return f"|pixel error| {pixel_error:.4f}"

    for progress in state.until_spent("vae ", run, clock, group, tell, every=_LOG_EVERY):
        if progress >= _ENCODER_UNTIL and not frozen:
            run.freeze_encoder()
            frozen = True
        batch = _batch(preset, images, [run.step, group.rank], progress, device)
        pixel_error = run.learn(batch, _rate(progress), group)
    return averaged(preset, work, device)


def _rate(progress: float) -> float:
    """Share of the peak learning rate: a cosine for both halves, another for the decoder."""
    if progress < _ENCODER_UNTIL:
        return 0.5 + 0.5 * cos(pi * progress / _ENCODER_UNTIL)
    return 0.5 + 0.5 * cos(pi * (progress - _ENCODER_UNTIL) / (1 - _ENCODER_UNTIL))


def averaged(preset: Preset, work: Path, device: torch.device) -> TrainedVae:
    """The averaged weights of a run that has ended, or is still going on."""
    saved = state.load(work / "vae.pt", device)
    if saved is None:
        raise FileNotFoundError(f"no VAE has been trained in {work}")
    average = AveragedModel(build(preset).to(device))
    average.load_state_dict(saved["average"])
    return TrainedVae(average.module.eval(), saved["step"], saved["spent"] / 60)


def _batch(
    preset: Preset, images: np.ndarray, key: list[int], progress: float, device: torch.device
) -> Tensor:
    """The batch of a key, [step, rank]: quarter crops at first, then whole images.

    Seeds torch from the key too, so that a resumed run continues as it would have.
    """
    rng = np.random.default_rng([SEED, 1, *key])
    torch.manual_seed(int(rng.integers(2**62)))
    if progress >= _CROPS_UNTIL:
        return to_pixels(images[rng.integers(len(images), size=preset.vae_batch)], device)
    crop = preset.image // 2
    places = rng.integers(0, (len(images), crop // 8 + 1, crop // 8 + 1), (preset.vae_batch * 4, 3))
    crops = [images[i, 8 * y : 8 * y + crop, 8 * x : 8 * x + crop] for i, y, x in places]
    return to_pixels(np.stack(crops), device)


def _loss(batch: Tensor, decoded: Tensor, latents: Tensor) -> tuple[float, Tensor]:
    """Mean absolute pixel error, and the loss: that, edges, and unit latents per channel."""
    difference = decoded - batch
    pixels = difference.abs().mean()
    # Squares beside absolute values: a missing star is a small error on average, and a large one of
    # its own.
    squares = difference.square().mean()
    edges = difference.diff(dim=-1).abs().mean() + difference.diff(dim=-2).abs().mean()
    sharp = difference.diff(dim=-1).square().mean() + difference.diff(dim=-2).square().mean()
    mean = latents.mean(dim=(0, 2, 3))
    deviation = latents.std(dim=(0, 2, 3))
    unit = mean.square().mean() + (deviation - 1).square().mean()
    return pixels.item(), pixels + edges + 2 * squares + 2 * sharp + 0.02 * unit
