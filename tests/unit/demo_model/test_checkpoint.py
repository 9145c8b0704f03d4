"""The checkpoint in the repository: small, safe to load, and a text-to-image model."""

from pathlib import Path

import pytest
import torch
from diffusers import AutoPipelineForImage2Image, AutoPipelineForText2Image, StableDiffusionPipeline

from deploy.demo_model.train import CHECKPOINT

PROMPT = "snowy mountains at night, the moon, a red house"


@pytest.fixture(scope="module")
def pipe() -> StableDiffusionPipeline:
    loaded = AutoPipelineForText2Image.from_pretrained(CHECKPOINT, use_safetensors=True)
    loaded.set_progress_bar_config(disable=True)
    return loaded


def painted(pipe: StableDiffusionPipeline, seed: int, **options: object) -> torch.Tensor:
    options = {"num_inference_steps": 4, "height": 64, "width": 64, "output_type": "pt"} | options
    return pipe(PROMPT, generator=torch.Generator().manual_seed(seed), **options).images[0]


def files() -> list[Path]:
    return [path for path in CHECKPOINT.rglob("*") if path.is_file()]


def test_it_is_small_and_holds_nothing_that_could_run_code() -> None:
    assert sum(path.stat().st_size for path in files()) < 25e6
    assert {path.suffix for path in files()} <= {".json", ".txt", ".md", ".safetensors"}


def test_it_is_a_stable_diffusion_of_down_factor_8(pipe: StableDiffusionPipeline) -> None:
    assert isinstance(pipe, StableDiffusionPipeline)
    assert pipe.vae_scale_factor == 8
    assert pipe.safety_checker is None
    assert pipe.dtype == torch.float32


def test_a_seed_is_an_image(pipe: StableDiffusionPipeline) -> None:
    assert torch.equal(painted(pipe, 1), painted(pipe, 1))
    assert not torch.equal(painted(pipe, 1), painted(pipe, 2))


def test_guidance_and_negative_prompts_count(pipe: StableDiffusionPipeline) -> None:
    plain = painted(pipe, 1, guidance_scale=4.0)
    assert not torch.equal(plain, painted(pipe, 1, guidance_scale=1.0))
    assert not torch.equal(plain, painted(pipe, 1, guidance_scale=4.0, negative_prompt="the moon"))


@pytest.mark.parametrize(("height", "width"), [(64, 64), (128, 128), (96, 160), (136, 120)])
def test_any_multiple_of_8_is_a_size(
    pipe: StableDiffusionPipeline, height: int, width: int
) -> None:
    assert painted(pipe, 1, height=height, width=width).shape == (3, height, width)


@pytest.mark.long
def test_night_is_darker_than_noon(pipe: StableDiffusionPipeline) -> None:
    def brightness(time: str) -> float:
        prompts = [f"green hills at {time}"] * 4
        generators = [torch.Generator().manual_seed(seed) for seed in range(4)]
        size = {"height": 128, "width": 128}
        made = pipe(
            prompts, num_inference_steps=8, generator=generators, output_type="pt", **size
        ).images
        return float(made.mean())

    assert brightness("night") < brightness("noon") - 0.15


def test_image_to_image_keeps_more_at_a_low_strength(pipe: StableDiffusionPipeline) -> None:
    start = painted(pipe, 1)[None]
    repaint = AutoPipelineForImage2Image.from_pipe(pipe)

    def distance(strength: float) -> float:
        made = painted(repaint, 2, image=start, strength=strength, num_inference_steps=10)
        return float((made - start[0]).abs().mean())

    assert distance(0.3) < distance(0.9)
