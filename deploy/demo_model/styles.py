"""Trains the demo model's style LoRAs: `python -m deploy.demo_model.styles`.

A style is a few colors that scenes are painted in, by their brightness. The LoRA learns to paint
them from the same captions: it needs no word in the prompt, and its scale says how far it goes.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from functools import partial
from math import cos, pi
from pathlib import Path
from typing import Final

import numpy as np
import torch
from diffusers import StableDiffusionPipeline
from peft import LoraConfig
from peft.utils import get_peft_model_state_dict
from PIL import Image
from safetensors.torch import save_file

from deploy.demo_model import state
from deploy.demo_model.diffusion import Batches, loss_of
from deploy.demo_model.preset import CPU, SEED, Preset
from deploy.demo_model.process_group import ProcessGroup
from deploy.demo_model.process_group import run as run_group
from deploy.demo_model.training_data import images, training_set

LORAS = Path(__file__).parent / "loras"
_CHECKPOINT = Path(__file__).parent / "checkpoint"
_WORK = Path(".darkroom/demo-model")
_SCENES = 2_000
_RANK = 6
_LAYERS = [
    *("to_q", "to_k", "to_v", "to_out.0", "proj_in", "proj_out", "ff.net.0.proj", "ff.net.2"),
    *("conv1", "conv2", "conv_shortcut", "conv_in", "conv_out"),
]
_RATE = 2e-3
_LOG_EVERY = 25
_LEVELS: Final = (0, 0.35, 0.7, 1)
_SHADES: Final[dict[str, list[tuple[int, int, int]]]] = {
    "moonlight": [(12, 16, 52), (60, 72, 140), (160, 176, 226), (240, 244, 252)],
    "ember": [(58, 22, 66), (150, 58, 84), (246, 146, 66), (255, 232, 150)],
}
"""Colors from dark to light, at the brightness of `_LEVELS`."""


def shaded(image: np.ndarray, style: str) -> np.ndarray:
    """An image in the few colors of a style, both uint8 [height, width, 3]."""
    light = np.asarray(Image.fromarray(image).convert("L"), np.float32)
    low, high = np.percentile(light, (2, 98))
    light = np.clip((light - low) / (high - low + 1e-3), 0, 1)
    colors = np.array(_SHADES[style], np.float32)
    channels = [np.interp(light, _LEVELS, colors[:, channel]) for channel in range(3)]
    return np.stack(channels, -1).round().astype(np.uint8)


STYLES: Final = tuple(_SHADES)


def train(
    name: str,
    preset: Preset,
    *,
    work: Path,
    checkpoint: Path,
    loras: Path,
    minutes: float,
    group: ProcessGroup,
) -> None:
    """Trains one style from nothing for `minutes` and writes its file."""
    torch.manual_seed(SEED)
    cpu = torch.device("cpu")
    pipe = StableDiffusionPipeline.from_pretrained(checkpoint, dtype=torch.float32)
    scenes = min(_SCENES, preset.scenes)
    with group.first_alone():
        drawn = images(preset.scenes, preset.image, work)[:scenes]
        styled = np.stack([shaded(each, name) for each in drawn])
        data = training_set(styled, pipe.vae, pipe.tokenizer, work / name, cpu)
    data = replace(data, scaling_factor=pipe.vae.config.scaling_factor)
    pipe.text_encoder.requires_grad_(False)
    pipe.unet.requires_grad_(False)
    pipe.unet.add_adapter(
        LoraConfig(r=_RANK, lora_alpha=_RANK, target_modules=_LAYERS, init_lora_weights="gaussian")
    )
    pipe.unet.train().to(memory_format=torch.channels_last)
    parameters = [each for each in pipe.unet.parameters() if each.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=_RATE, betas=(0.9, 0.99), weight_decay=0.01)
    batches = Batches(preset, data, pipe.tokenizer, cpu)
    clock = state.Clock(minutes)
    step, smooth = 0, 0.0
    while (progress := group.agree(clock.progress)) < 1:
        for each in optimizer.param_groups:
            each["lr"] = _RATE * min(1.0, (step + 1) / 20) * (0.5 + 0.5 * cos(pi * progress))
        optimizer.zero_grad(set_to_none=True)
        loss = loss_of(pipe.unet, pipe.text_encoder, batches.at(step, group.rank))
        loss.backward()  # type: ignore[no-untyped-call]
        group.average_gradients(parameters)
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        step += 1
        smooth = loss.item() if step == 1 else 0.95 * smooth + 0.05 * loss.item()
        if group.is_leader and step % _LOG_EVERY == 0:
            print(f"{name} {progress:6.1%}  step {step}  loss {smooth:.4f}", flush=True)
    if group.is_leader:
        learnt = get_peft_model_state_dict(pipe.unet)
        weights = {f"unet.{key}": value.half().contiguous() for key, value in learnt.items()}
        target = loras / f"{name}.safetensors"
        state.save_atomically(partial(save_file, weights, metadata={"format": "pt"}), target)
        print(f"wrote {target} after {step} steps")
    group.wait()


def _train_all(*, styles: list[str], group: ProcessGroup, **options: object) -> None:
    for name in styles:
        train(name, CPU, group=group, **options)  # type: ignore[arg-type]


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m deploy.demo_model.styles", description=(__doc__ or "").split("\n")[0]
    )
    parser.add_argument("--minutes", type=float, default=12, help="for each style")
    parser.add_argument("--styles", nargs="*", choices=STYLES, default=list(STYLES))
    parser.add_argument("--work", type=Path, default=_WORK, help="where training data are kept")
    parser.add_argument("--checkpoint", type=Path, default=_CHECKPOINT, help="the base model")
    parser.add_argument("--loras", type=Path, default=LORAS, help="where the LoRAs are written")
    run_group(CPU.processes, partial(_train_all, **vars(parser.parse_args())))


if __name__ == "__main__":
    main()
