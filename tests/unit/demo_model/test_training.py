"""The trainer at a tiny size: every stage runs, a killed run goes on, the result is loadable."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from diffusers import AutoPipelineForText2Image

from deploy.demo_model import preset as presets
from deploy.demo_model import state, train
from deploy.demo_model.preset import Preset
from deploy.demo_model.team import Team


@pytest.fixture(scope="module")
def tiny() -> Preset:
    return replace(
        presets.CPU,
        processes=1,
        picture=64,
        scenes=24,
        vae_channels=8,
        vae_blocks=(1, 1, 1, 1),
        text_channels=32,
        text_layers=1,
        text_steps=3,
        text_batch=8,
        unet_channels=(16, 32),
        unet_batch=4,
    )


def test_training_goes_on_where_it_stopped(tiny: Preset, tmp_path: Path) -> None:
    work, checkpoint = tmp_path / "work", tmp_path / "checkpoint"
    two_seconds, cpu = 2 / 60, torch.device("cpu")

    def train_for(minutes_unet: float) -> None:
        train.run(
            tiny,
            work=work,
            checkpoint=checkpoint,
            device=cpu,
            minutes_vae=two_seconds,
            minutes_unet=minutes_unet,
            team=Team(),
        )

    train_for(two_seconds)
    first = state.load(work / "unet.pt", cpu)
    drawn_at = (work / "latents.npy").stat().st_mtime_ns
    train_for(2 * two_seconds)
    second = state.load(work / "unet.pt", cpu)

    assert first is not None
    assert second is not None
    assert second["step"] > first["step"] > 0
    assert second["spent"] >= 4 > first["spent"]
    assert (work / "latents.npy").stat().st_mtime_ns == drawn_at
    pipe = AutoPipelineForText2Image.from_pretrained(checkpoint, use_safetensors=True)
    picture = pipe("green hills", num_inference_steps=1, output_type="np").images[0]
    assert picture.shape == (64, 64, 3)
