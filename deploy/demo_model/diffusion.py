"""Trains the UNet, and the text encoder beside it, to predict v on encoded scenes."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import chain
from math import cos, pi
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import DDPMScheduler, DPMSolverMultistepScheduler, UNet2DConditionModel
from diffusers.models.attention_processor import AttnProcessor
from torch import Tensor, nn
from transformers import CLIPTextModel, CLIPTokenizer

from deploy.demo_model import state
from deploy.demo_model.preset import EMPTY_CAPTIONS, SEED, TIMESTEPS, Preset
from deploy.demo_model.process_group import ProcessGroup
from deploy.demo_model.text import tokens
from deploy.demo_model.training_data import CAPTIONS_PER_SCENE, TrainingSet

_AVERAGE_DECAY = 0.998
_WARM_UP_STEPS = 150
_TEXT_RATE = 0.1
"""Learning rate of the text encoder, which can read already, as a share of the UNet's."""
_MOST_SIGNAL = 5.0
"""The ratio of signal to noise from which on a step counts no more."""
_LOG_EVERY = 50

# With beta_end at 0.02 and not Stable Diffusion's 0.012, the last step holds next to nothing
# of the image (signal 0.015), as the pure noise that sampling starts from. So images can
# be as dark as night, with no rescaled betas that only some schedulers know.
_NOISE = {
    "num_train_timesteps": TIMESTEPS,
    "beta_schedule": "scaled_linear",
    "beta_start": 0.00085,
    "beta_end": 0.02,
    "prediction_type": "v_prediction",
    "timestep_spacing": "trailing",
    "steps_offset": 1,
}


def scheduler() -> DPMSolverMultistepScheduler:
    """The scheduler that the checkpoint names: DPM++ 2M on the schedule of training."""
    return DPMSolverMultistepScheduler(**_NOISE)


def build(preset: Preset) -> UNet2DConditionModel:
    """An untrained UNet. The text reaches it twice: by cross-attention, and pooled, beside the
    timestep, which is a shorter way to learn what colours the whole image."""
    levels = len(preset.unet_channels) - 1
    return UNet2DConditionModel(
        sample_size=preset.image // 8,
        in_channels=preset.latent_channels,
        out_channels=preset.latent_channels,
        block_out_channels=preset.unet_channels,
        layers_per_block=preset.unet_layers,
        down_block_types=("DownBlock2D", *("CrossAttnDownBlock2D",) * levels),
        up_block_types=(*("CrossAttnUpBlock2D",) * levels, "UpBlock2D"),
        cross_attention_dim=preset.text_channels,
        # diffusers reads this as the number of heads.
        attention_head_dim=4,
        norm_num_groups=16,
        resnet_time_scale_shift="scale_shift",
        addition_embed_type="text",
        addition_embed_type_num_heads=4,
    )


@dataclass(slots=True)
class TrainedUNet:
    """The averaged weights of a run so far."""

    unet: UNet2DConditionModel
    text_encoder: CLIPTextModel
    steps: int
    minutes: float


class _Average:
    """An exponential moving average of parameters, young while the run is young."""

    def __init__(self, parameters: list[nn.Parameter]) -> None:
        self._source = [p.data for p in parameters]
        self.values = [p.clone() for p in self._source]

    def update(self, step: int) -> None:
        decay = min(_AVERAGE_DECAY, (step + 1) / (step + 10))
        torch._foreach_lerp_(self.values, self._source, 1 - decay)


class _Run:
    """The networks in training, their optimizer and how far they are."""

    def __init__(
        self,
        preset: Preset,
        text_encoder: CLIPTextModel,
        start: UNet2DConditionModel | None,
        work: Path,
        device: torch.device,
    ) -> None:
        self.unet = build(preset).to(device, memory_format=torch.channels_last)
        if start is not None:
            self.unet.load_state_dict(start.state_dict())
        if device.type == "cpu":
            # On 64 tokens of a small head, PyTorch's fused attention takes a quarter of a
            # step's time more on a CPU than the plain products do.
            self.unet.set_attn_processor(AttnProcessor())
        self.text_encoder = text_encoder.to(device).train()
        self.parameters = list(chain(self.unet.parameters(), text_encoder.parameters()))
        self.average = _Average(self.parameters)
        self.step = 0
        self.spent = 0.0
        self._peak_rate = preset.unet_learning_rate
        self._optimizer = torch.optim.AdamW(
            [
                {"params": list(self.unet.parameters()), "share": 1.0},
                {"params": list(text_encoder.parameters()), "share": _TEXT_RATE},
            ],
            betas=(0.9, 0.99),
            weight_decay=0.01,
            fused=True,
        )
        self._file = work / "unet.pt"
        if (saved := state.load(self._file, device)) is not None:
            _copy(saved["parameters"], self.parameters)
            self.average.values = saved["average"]
            self._optimizer.load_state_dict(saved["optimizer"])
            self.step, self.spent = saved["step"], saved["spent"]

    def keep(self, spent: float) -> None:
        """Writes everything that a later run needs to continue."""
        state.save(
            {
                "parameters": [p.data for p in self.parameters],
                "average": self.average.values,
                "optimizer": self._optimizer.state_dict(),
                "step": self.step,
                "spent": spent,
            },
            self._file,
        )

    def learn(self, batch: Batch, progress: float, group: ProcessGroup) -> float:
        """One step on the team's batches; the loss of this process's own."""
        loss = loss_of(self.unet, self.text_encoder, batch)
        warm_up = min(1.0, (self.step + 1) / _WARM_UP_STEPS)
        rate = self._peak_rate * warm_up * (0.5 + 0.5 * cos(pi * progress))
        for parameters in self._optimizer.param_groups:
            parameters["lr"] = rate * parameters["share"]
        self._optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        group.average_gradients(self.parameters)
        nn.utils.clip_grad_norm_(self.parameters, 1.0)
        self._optimizer.step()
        self.average.update(self.step)
        self.step += 1
        return loss.item()


def loss_of(
    unet: UNet2DConditionModel,
    text_encoder: CLIPTextModel,
    batch: Batch,
    control: Callable[[Tensor, Tensor, Tensor], dict[str, Any]] | None = None,
) -> Tensor:
    """The weighted mean of the squared errors of v, a scalar.

    `control` makes what the UNet is given besides, of the noisy latents, timesteps and text.
    """
    noisy = batch.noisy.contiguous(memory_format=torch.channels_last)
    with torch.autocast(noisy.device.type, torch.bfloat16):
        states = text_encoder(batch.token_ids).last_hidden_state
        more = control(noisy, batch.timesteps, states) if control else {}
        predicted = unet(noisy, batch.timesteps, encoder_hidden_states=states, **more).sample
    errors = (predicted.float() - batch.velocity).square().mean(dim=(1, 2, 3))
    loss: Tensor = (errors * batch.weights).mean()
    return loss


def train(
    preset: Preset,
    data: TrainingSet,
    tokenizer: CLIPTokenizer,
    text_encoder: CLIPTextModel,
    *,
    start: UNet2DConditionModel | None,
    work: Path,
    device: torch.device,
    minutes: float,
    group: ProcessGroup,
) -> TrainedUNet:
    """Trains until `minutes` are spent in all runs of `work`, the first of which continues from
    `start`; the given text encoder is trained on."""
    run = _Run(preset, text_encoder, start, work, device)
    batches = Batches(preset, data, tokenizer, device, for_layout=True)
    clock = state.Clock(minutes, run.spent)
    smooth = 0.0

    def tell() -> str:
        return f"loss {smooth:.4f}"

    for progress in state.until_spent("unet", run, clock, group, tell, every=_LOG_EVERY):
        loss = run.learn(batches.at(run.step, group.rank), progress, group)
        smooth = loss if smooth == 0 else 0.98 * smooth + 0.02 * loss
    _copy(run.average.values, run.parameters)
    return TrainedUNet(run.unet.eval(), text_encoder.eval(), run.step, clock.spent / 60)


def averaged(preset: Preset, text_encoder: CLIPTextModel, work: Path) -> TrainedUNet:
    """The averaged weights of a run that may still be going on."""
    unet = build(preset)
    saved = state.load(work / "unet.pt", torch.device("cpu"))
    if saved is None:
        raise FileNotFoundError(f"no UNet has been trained in {work}")
    _copy(saved["average"], chain(unet.parameters(), text_encoder.parameters()))
    return TrainedUNet(unet.eval(), text_encoder.eval(), saved["step"], saved["spent"] / 60)


@dataclass(frozen=True, slots=True)
class Batch:
    rows: np.ndarray
    """Of which scenes of the training set, int64 [n]."""
    noisy: Tensor
    """Latents with noise, [n, channels, height, width]."""
    timesteps: Tensor
    """How much noise, int64 [n]."""
    token_ids: Tensor
    """int64 [n, TOKENS]."""
    velocity: Tensor
    """What the UNet is to predict, shaped as the latents."""
    weights: Tensor
    """What each error counts, float32 [n], 1 on average."""


class Batches:
    """Batches that step and rank alone decide, so that a resumed run continues as it would."""

    def __init__(
        self,
        preset: Preset,
        data: TrainingSet,
        tokenizer: CLIPTokenizer,
        device: torch.device,
        *,
        for_layout: bool = False,
    ) -> None:
        """
        Args:
            for_layout: the steps with much noise, in which it is settled what is where, come more
                often and count as much as the others.
        """
        self._for_layout = for_layout
        self._size = preset.unet_batch
        self._data = data
        self._device = device
        self._empty = tokens(tokenizer, [""])[0].numpy()
        self._noise = DDPMScheduler(**_NOISE)
        kept = self._noise.alphas_cumprod
        signal = kept / (1 - kept)
        # Min-SNR (Hang et al., 2023) for predictions of v: the steps with next to no noise, which
        # are many and easy, leave more of the learning to those that decide what is where.
        weights = signal.clamp(max=_MOST_SIGNAL) / (signal + 1)
        if for_layout:
            weights = torch.ones_like(weights)
        self._weights = (weights / weights.mean()).to(device)

    def at(self, step: int, rank: int) -> Batch:
        """The batch of a step in the process of that rank."""
        rng = np.random.default_rng([SEED, 5, step, rank])
        torch.manual_seed(int(rng.integers(2**62)))
        rows = rng.integers(len(self._data.latents), size=self._size)
        ids = self._data.token_ids[rows, rng.integers(CAPTIONS_PER_SCENE, size=self._size)]
        ids = np.where(rng.random((self._size, 1)) < EMPTY_CAPTIONS, self._empty, ids)
        clean = torch.from_numpy(self._data.latents[rows].astype(np.float32)).to(self._device)
        clean *= self._data.scaling_factor
        # One timestep from each of n equal parts of the schedule: the loss of a batch then
        # varies less than with n independent ones.
        parts = (rng.permutation(self._size) + rng.random(self._size)) / self._size
        if self._for_layout:
            parts = np.sqrt(parts)
        timesteps = torch.from_numpy((parts * TIMESTEPS).astype(np.int64)).to(self._device)
        noise = torch.randn_like(clean)
        noisy: Tensor = self._noise.add_noise(clean, noise, timesteps)
        velocity: Tensor = self._noise.get_velocity(clean, noise, timesteps)
        token_ids = torch.from_numpy(ids.astype(np.int64)).to(self._device)
        return Batch(rows, noisy, timesteps, token_ids, velocity, self._weights[timesteps])


def _copy(values: list[Tensor], parameters: Iterable[nn.Parameter]) -> None:
    for parameter, value in zip(parameters, values, strict=True):
        parameter.data.copy_(value)
