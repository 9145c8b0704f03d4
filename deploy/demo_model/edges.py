"""Trains the demo model's ControlNet for edges: `python -m deploy.demo_model.edges`.

It sees a scene's edges as a job's `preprocess: canny` finds them, and learns to bring the UNet,
which stays as it is, to paint along them. Resumes from `--work`, as the model's own training does.
"""

from __future__ import annotations

import argparse
import os
import shutil
from dataclasses import replace
from functools import partial
from math import cos, pi
from pathlib import Path
from string import Template
from typing import Any, Final

import numpy as np
import torch
from diffusers import ControlNetModel, StableDiffusionPipeline, UNet2DConditionModel
from diffusers.models.attention_processor import AttnProcessor
from PIL import Image
from torch import Tensor, nn

from deploy.demo_model import state
from deploy.demo_model.diffusion import Batch, Batches, loss_of
from deploy.demo_model.preset import CPU, SEED, Preset
from deploy.demo_model.process_group import ProcessGroup
from deploy.demo_model.process_group import run as run_group
from deploy.demo_model.training_data import images, training_set
from worker.jobs.inputs import edges

CONTROLNET = Path(__file__).parent / "controlnets" / "edges"
LOW, HIGH = 100, 200
"""The thresholds of a job that names none."""
_CHECKPOINT = Path(__file__).parent / "checkpoint"
_WORK = Path(".darkroom/demo-model")
_SCENES = 8_000
_BATCH = 16
_CONDITION_CHANNELS: Final = (8, 16, 32, 64)
_RATE = 1e-3
_WARM_UP_STEPS = 50
_LOG_EVERY = 25
_CARD: Final = Template("""\
---
license: apache-2.0
library_name: diffusers
---
# Edges for Darkroom's demo model

A ControlNet by which the [demo model](../../checkpoint/README.md) paints along white edges on
black, as Canny's algorithm finds them. $parameters million parameters; $steps steps of $batch in
$minutes minutes, on $scenes drawn scenes and no other image (`python -m deploy.demo_model.edges`).
`docs/demo-model.md` in the repository has its numbers.
""")


def build(unet: UNet2DConditionModel) -> ControlNetModel:
    """An untrained net: the UNet's way down without attention, with the UNet's own weights."""
    config = unet.config
    net = ControlNetModel(
        in_channels=config.in_channels,
        block_out_channels=config.block_out_channels,
        layers_per_block=config.layers_per_block,
        down_block_types=("DownBlock2D",) * len(config.block_out_channels),
        mid_block_type="UNetMidBlock2D",
        norm_num_groups=config.norm_num_groups,
        # Without attention this says only which UNets the net fits.
        cross_attention_dim=config.cross_attention_dim,
        conditioning_embedding_out_channels=_CONDITION_CHANNELS,
    )
    own = net.state_dict()
    shared = {
        name: value
        for name, value in unet.state_dict().items()
        if name in own and own[name].shape == value.shape
    }
    net.load_state_dict(own | shared)
    # What the net adds begins at zero; what it sees need not, too. With diffusers' weights next to
    # nothing of a few white lines would come through eight layers.
    seeing = net.controlnet_cond_embedding
    for layer in (seeing.conv_in, *seeing.blocks, seeing.conv_out):
        nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
        nn.init.zeros_(layer.bias)
    return net


class EdgeMaps:
    """The edges of each scene, by the usual thresholds and by lower ones."""

    def __init__(self, drawn: np.ndarray, work: Path) -> None:
        file = work / "edges.npy"
        if not file.exists():
            state.save_atomically(partial(_find_all, drawn), file)
        self._packed = np.load(file)
        self._size = drawn.shape[1]

    def at(self, batch: Batch, step: int, rank: int) -> Tensor:
        """What the net sees of a batch's scenes, float32 [n, 3, size, size] in 0 to 1."""
        rng = np.random.default_rng([SEED, 6, step, rank])
        which = rng.integers(self._packed.shape[1], size=len(batch.rows))
        bits = np.unpackbits(self._packed[batch.rows, which], axis=-1)
        found = torch.from_numpy(bits.reshape(-1, 1, self._size, self._size)).float()
        return found.expand(-1, 3, -1, -1).contiguous(memory_format=torch.channels_last)


def _find_all(drawn: np.ndarray, path: Path) -> None:
    """Two maps of each image, a bit for each pixel: uint8 [n, 2, size² / 8]."""
    maps = []
    for index, pixels in enumerate(drawn):
        image = Image.fromarray(pixels)
        # Pictures differ in contrast, and people in what they take for an edge.
        low = int(np.random.default_rng([SEED, 7, index]).integers(15, LOW))
        found = [edges(image, *pair) for pair in ((LOW, HIGH), (low, 2 * low))]
        maps.append([np.packbits(np.asarray(each)[..., 0] > 0) for each in found])
    with path.open("wb") as file:
        np.save(file, np.array(maps))


class _Run:
    """The net in training, its optimizer and how far they are."""

    def __init__(self, pipe: StableDiffusionPipeline, work: Path) -> None:
        self._unet = pipe.unet.requires_grad_(False).to(memory_format=torch.channels_last)
        self._unet.set_attn_processor(AttnProcessor())  # as in the UNet's own training
        self._text_encoder = pipe.text_encoder.requires_grad_(False)
        self.net = build(pipe.unet).train().to(memory_format=torch.channels_last)
        self.step, self.spent, self.loss = 0, 0.0, 0.0
        self._parameters = list(self.net.parameters())
        self._optimizer = torch.optim.AdamW(
            self._parameters, betas=(0.9, 0.99), weight_decay=0.01, fused=True
        )
        self._file = work / "net.pt"
        if (saved := state.load(self._file, torch.device("cpu"))) is not None:
            self.net.load_state_dict(saved["net"])
            self._optimizer.load_state_dict(saved["optimizer"])
            self.step, self.spent, self.loss = saved["step"], saved["spent"], saved["loss"]

    def keep(self, spent: float) -> None:
        kept = {"net": self.net.state_dict(), "optimizer": self._optimizer.state_dict()}
        at = {"step": self.step, "spent": spent, "loss": self.loss}
        state.save(kept | at, self._file)

    def learn(self, batch: Batch, seen: Tensor, progress: float, group: ProcessGroup) -> None:
        warm_up = min(1.0, (self.step + 1) / _WARM_UP_STEPS)
        for each in self._optimizer.param_groups:
            each["lr"] = _RATE * warm_up * (0.5 + 0.5 * cos(pi * progress))
        self._optimizer.zero_grad(set_to_none=True)
        loss = loss_of(self._unet, self._text_encoder, batch, partial(self._added, seen))
        loss.backward()  # type: ignore[no-untyped-call]
        group.average_gradients(self._parameters)
        nn.utils.clip_grad_norm_(self._parameters, 1.0)
        self._optimizer.step()
        self.step += 1
        self.loss = loss.item() if self.step == 1 else 0.98 * self.loss + 0.02 * loss.item()

    def _added(
        self, seen: Tensor, noisy: Tensor, timesteps: Tensor, states: Tensor
    ) -> dict[str, Any]:
        """What the net has the UNet add to its blocks."""
        down, middle = self.net(noisy, timesteps, states, controlnet_cond=seen, return_dict=False)
        return {
            "down_block_additional_residuals": down,
            "mid_block_additional_residual": middle,
        }


def train(
    preset: Preset,
    *,
    work: Path,
    checkpoint: Path,
    controlnet: Path,
    minutes: float,
    group: ProcessGroup,
) -> None:
    """Trains until `minutes` are spent in all runs of `work` and writes the net's folder."""
    torch.manual_seed(SEED)
    cpu, work_here = torch.device("cpu"), work / "edges"
    pipe = StableDiffusionPipeline.from_pretrained(checkpoint, dtype=torch.float32)
    with group.first_alone():
        drawn = images(preset.scenes, preset.image, work)[: min(_SCENES, preset.scenes)]
        data = training_set(drawn, pipe.vae, pipe.tokenizer, work_here, cpu)
        maps = EdgeMaps(drawn, work_here)
    data = replace(data, scaling_factor=pipe.vae.config.scaling_factor)
    preset = replace(preset, unet_batch=min(_BATCH, preset.unet_batch))
    batches = Batches(preset, data, pipe.tokenizer, cpu, for_layout=True)
    run = _Run(pipe, work_here)
    clock = state.Clock(minutes, run.spent)

    def tell() -> str:
        return f"loss {run.loss:.4f}"

    for progress in state.until_spent("edges", run, clock, group, tell, every=_LOG_EVERY):
        batch = batches.at(run.step, group.rank)
        run.learn(batch, maps.at(batch, run.step, group.rank), progress, group)
    if group.is_leader:
        facts = {
            "steps": f"{run.step:,}",
            "batch": preset.unet_batch * group.size,
            "minutes": f"{clock.spent / 60:.0f}",
            "scenes": f"{len(drawn):,}",
        }
        export(run.net, controlnet, facts)
        print(f"wrote {controlnet} after {run.step} steps")
    group.wait()


def export(net: ControlNetModel, folder: Path, facts: dict[str, object]) -> None:
    """Replaces `folder` with the net in float16 and a card that says how it was trained."""
    fresh = folder.with_name(f".{folder.name}.new")
    shutil.rmtree(fresh, ignore_errors=True)
    net.to(torch.float16).save_pretrained(fresh, safe_serialization=True)
    for weights in fresh.glob("*.safetensors"):
        weights.chmod(0o644)  # safetensors writes files that only their owner can read
    millions = sum(weight.numel() for weight in net.parameters()) / 1e6
    card = _CARD.substitute(facts, parameters=f"{millions:.1f}")
    (fresh / "README.md").write_text(card)
    shutil.rmtree(folder, ignore_errors=True)
    fresh.replace(folder)


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m deploy.demo_model.edges", description=(__doc__ or "").split("\n")[0]
    )
    parser.add_argument("--minutes", type=float, default=60, help="over all runs")
    parser.add_argument("--work", type=Path, default=_WORK, help="where training state is kept")
    parser.add_argument("--checkpoint", type=Path, default=_CHECKPOINT, help="the base model")
    parser.add_argument("--controlnet", type=Path, default=CONTROLNET, help="what is written")
    options = parser.parse_args()
    if hasattr(os, "SCHED_IDLE"):
        os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))
    run_group(CPU.processes, partial(train, CPU, **vars(options)))


if __name__ == "__main__":
    main()
