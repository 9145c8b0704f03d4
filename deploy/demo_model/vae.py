"""Trains the autoencoder that turns pictures into latents of an eighth of their size."""

from __future__ import annotations

from dataclasses import dataclass
from math import cos, pi
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderTiny
from torch import Tensor
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from deploy.demo_model import state
from deploy.demo_model.preset import SEED, Preset
from deploy.demo_model.team import Team

_LATENT_NOISE = 0.15
"""Deviation of the noise added to latents in training, whose own deviation is held at 1. It
makes the decoder forgive the small errors that a denoised latent always has."""
_CROPS_UNTIL = 0.75
"""Share of the budget spent on crops: the same work per step shows four times the scenes."""
_AVERAGE_DECAY = 0.998
_LOG_EVERY = 100


@dataclass(frozen=True, slots=True)
class Trained:
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


def to_pixels(pictures: np.ndarray, device: torch.device) -> Tensor:
    """uint8 pictures [n, height, width, 3] as floats [n, 3, height, width] in -1 to 1."""
    floats = torch.from_numpy(np.ascontiguousarray(pictures)).to(device).permute(0, 3, 1, 2)
    return floats.float().div(127.5).sub(1).contiguous(memory_format=torch.channels_last)


def train(
    preset: Preset,
    pictures: np.ndarray,
    *,
    work: Path,
    device: torch.device,
    minutes: float,
    team: Team,
) -> Trained:
    """Trains on uint8 pictures [n, size, size, 3] until `minutes` are spent in all runs."""
    model = build(preset).to(device, memory_format=torch.channels_last)
    average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(_AVERAGE_DECAY))  # type: ignore[no-untyped-call]
    parameters = list(model.parameters())
    optimizer = torch.optim.AdamW(parameters, betas=(0.9, 0.95), weight_decay=1e-4)
    saved = state.load(work / "vae.pt", device)
    step, spent = 0, 0.0
    if saved is not None:
        model.load_state_dict(saved["model"])
        average.load_state_dict(saved["average"])
        optimizer.load_state_dict(saved["optimizer"])
        step, spent = saved["step"], saved["spent"]
    clock = state.Clock(minutes, spent)

    def keep() -> None:
        state.save(
            {
                "model": model.state_dict(),
                "average": average.state_dict(),
                "optimizer": optimizer.state_dict(),
                "step": step,
                "spent": clock.spent,
            },
            work / "vae.pt",
        )

    torch.manual_seed(SEED + team.rank)
    while (progress := team.agree(clock.progress)) < 1:
        batch = _batch(preset, pictures, [step, team.rank], progress, device)
        rate = (
            preset.vae_learning_rate * min(1, (step + 1) / 100) * (0.5 + 0.5 * cos(pi * progress))
        )
        for group in optimizer.param_groups:
            group["lr"] = rate
        with torch.autocast(device.type, torch.bfloat16):
            latents = model.encode(batch).latents
            noisy = latents + _LATENT_NOISE * torch.randn_like(latents)
            decoded = model.decode(noisy).sample
        pixel_error, loss = _loss(batch, decoded.float(), latents.float())
        optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        team.average_gradients(parameters)
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        average.update_parameters(model)
        step += 1
        if team.leads and step % _LOG_EVERY == 0:
            print(
                f"vae  {progress:6.1%}  step {step}  |pixel error| {pixel_error:.4f}  "
                f"loss {loss.item():.4f}  rate {rate:.1e}",
                flush=True,
            )
        if team.leads and clock.save_due():
            keep()
    if team.leads:
        keep()
    team.wait()
    return averaged(preset, work, device)


def averaged(preset: Preset, work: Path, device: torch.device) -> Trained:
    """The averaged weights of a run that has ended, or is still going on."""
    saved = state.load(work / "vae.pt", device)
    if saved is None:
        raise FileNotFoundError(f"no VAE has been trained in {work}")
    average = AveragedModel(build(preset).to(device))
    average.load_state_dict(saved["average"])
    return Trained(average.module.eval(), saved["step"], saved["spent"] / 60)


def _batch(
    preset: Preset, pictures: np.ndarray, key: list[int], progress: float, device: torch.device
) -> Tensor:
    """The batch of a key, [step, rank]: quarter crops at first, then whole pictures."""
    rng = np.random.default_rng([SEED, 1, *key])
    if progress >= _CROPS_UNTIL:
        return to_pixels(pictures[rng.integers(len(pictures), size=preset.vae_batch)], device)
    crop = preset.picture // 2
    places = rng.integers(
        0, (len(pictures), crop // 8 + 1, crop // 8 + 1), (preset.vae_batch * 4, 3)
    )
    crops = [pictures[i, 8 * y : 8 * y + crop, 8 * x : 8 * x + crop] for i, y, x in places]
    return to_pixels(np.stack(crops), device)


def _loss(batch: Tensor, decoded: Tensor, latents: Tensor) -> tuple[float, Tensor]:
    """Mean absolute pixel error, and the loss: that, edges, and unit latents per channel."""
    pixels = (decoded - batch).abs().mean()
    difference = decoded - batch
    edges = difference.diff(dim=-1).abs().mean() + difference.diff(dim=-2).abs().mean()
    mean = latents.mean(dim=(0, 2, 3))
    deviation = latents.std(dim=(0, 2, 3))
    unit = mean.square().mean() + (deviation - 1).square().mean()
    return pixels.item(), pixels + 0.5 * edges + 0.02 * unit
