"""The families of flow matching: equal to diffusers at one row, independent of neighbours at four.

The full proof, with 200 crowds each, is `tests/proof`.
"""

import dataclasses
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pytest
import torch

from shared.core.errors import InvalidInput, ModelUnavailable
from shared.core.families import FAMILIES
from tests.unit.engine.concurrency import make_alone, make_among_others
from tests.unit.engine.families import TOYS, Toy
from tests.unit.engine.reference import reference
from tests.unit.engine.test_one_row import START
from tests.unit.engine.toys import long_but, request, toy_backend, toy_engine, toy_folder
from worker.engine.pipeline_backend import rule_of

QUICK = ("flux", "sd3", "qwen")
FROM_IMAGE: dict[str, Any] = {"init_image": START, "strength": 0.7}


def _cases() -> Iterator[Any]:
    """Text and image input, with and without guidance and a negative prompt, every scheduler."""
    for name, toy in TOYS.items():
        facts = FAMILIES[toy.family]
        for scheduler in facts.schedulers:
            marks = () if scheduler == toy.schedulers[0] else pytest.mark.long
            yield pytest.param(toy, {"scheduler": scheduler}, id=f"{name}-{scheduler}", marks=marks)
        plain = {"scheduler": facts.schedulers[0], "width": 96}
        marks = () if name in QUICK else pytest.mark.long
        if toy.negative:
            negative = plain | {"negative_prompt": "blurry, dark"}
            yield pytest.param(toy, negative, id=f"{name}-neg", marks=marks)
        unguided = plain | {"guidance_scale": toy.unguided}
        yield pytest.param(toy, unguided, id=f"{name}-unguided", marks=marks)
        if facts.image_to_image:
            yield pytest.param(toy, plain | FROM_IMAGE, id=f"{name}-image")


@pytest.mark.parametrize(("toy", "changes"), _cases())
def test_one_row_equals_diffusers(toy: Toy, changes: dict[str, Any]) -> None:
    image_request = request(**{"guidance_scale": toy.guidance, **toy.request, **changes})
    made = make_alone(toy_backend(toy.name, 1, **toy.spec), image_request)
    expected, more = reference(toy_folder(toy.name)), toy.arguments(image_request)
    latents, pixels = expected.latents_and_pixels(image_request, more)
    assert torch.equal(made.latents, latents)
    assert np.array_equal(made.pixels, pixels)


@pytest.mark.parametrize("negative", [None, "blurry"])
@pytest.mark.parametrize("name", ["flux", "schnell", "qwen"])
def test_a_job_may_have_a_true_guidance_scale(name: str, negative: str | None) -> None:
    """Of its own, whatever the model has; without a negative prompt, away from an empty one."""
    toy = TOYS[name]
    asked = request(
        scheduler="flow-euler",
        guidance_scale=toy.guidance,
        true_cfg_scale=2.5,
        negative_prompt=negative,
    )
    generated = make_alone(toy_backend(name, 1, **toy.spec), asked)
    blank = " " if name == "qwen" else ""
    more = {"true_cfg_scale": 2.5, "negative_prompt": blank if negative is None else negative}
    expected = reference(toy_folder(name)).latents(asked, {**toy.arguments(asked), **more})
    assert torch.equal(generated.latents, expected)
    off = dataclasses.replace(asked, true_cfg_scale=1.0)
    assert not toy_backend(name, 1, **toy.spec)._family.guided(off)


@pytest.mark.parametrize("name", long_but(QUICK, TOYS))
def test_a_row_is_the_same_in_any_crowd(name: str) -> None:
    toy = TOYS[name]
    backend = toy_backend(toy.name, 4, **toy.spec)
    image_request = request(guidance_scale=toy.guidance, scheduler=toy.schedulers[0], **toy.request)
    alone = make_alone(backend, image_request)
    crowded = make_among_others(backend, image_request, Random(3), toy.schedulers, toy.from_images)
    assert torch.equal(crowded.latents, alone.latents)
    assert np.array_equal(crowded.pixels, alone.pixels)


@pytest.mark.parametrize("name", TOYS)
def test_the_table_that_the_api_reads_says_what_the_pipeline_does(name: str) -> None:
    """Sizes and the steps that a strength leaves."""
    family = toy_backend(name, 1)._family
    if family.facts.image_to_image:
        assert rule_of(family.image_pipeline) == family.facts.strength_rule
    assert family.facts.size_multiple == family.pipeline.vae_scale_factor * family.patch


@pytest.mark.parametrize(
    ("name", "changes", "said"),
    [
        ("sd3", {"width": 72}, "multiples of 16"),
        ("sd3", {"scheduler": "euler"}, "runs with the scheduler flow-euler or flow-heun"),
        ("flux", {"scheduler": "flow-heun"}, "runs with the scheduler flow-euler"),
        ("flux", {"negative_prompt": "blurry"}, "does not support negative prompts"),
        ("sd3", {"true_cfg_scale": 4.0}, "does not support true_cfg_scale"),
    ],
)
def test_what_a_family_cannot_do_is_refused(name: str, changes: dict[str, Any], said: str) -> None:
    image_request = request(**{"scheduler": "flow-euler", **changes})
    with pytest.raises(InvalidInput, match=said):
        toy_backend(name, 1).check(image_request)


def _refusal(name: str, **changes: Any) -> str:
    with pytest.raises(ModelUnavailable) as raised:
        toy_engine(name, **changes)
    assert len(raised.value.message.splitlines()) == 1
    return raised.value.message


def test_a_checkpoint_without_one_of_its_encoders_is_refused(tmp_path: Path) -> None:
    folder = Path(shutil.copytree(toy_folder("sdxl"), tmp_path / "sdxl"))
    index = folder / "model_index.json"
    index.write_text(json.dumps(json.loads(index.read_text()) | {"text_encoder": [None, None]}))
    said = _refusal("sdxl", source=str(folder))
    assert said == (
        "This StableDiffusionXLPipeline differs from the family sdxl: it has no text_encoder."
    )


def test_a_checkpoint_with_other_channels_is_refused(tmp_path: Path) -> None:
    """As a UNet for inpainting has them."""
    from diffusers import StableDiffusionPipeline, UNet2DConditionModel

    pipeline = StableDiffusionPipeline.from_pretrained(toy_folder("sd15"))
    pipeline.unet = UNet2DConditionModel.from_config(pipeline.unet.config, in_channels=9)
    pipeline.save_pretrained(tmp_path / "nine")
    said = _refusal("sd15", source=str(tmp_path / "nine"))
    assert "its UNet takes 9 channels and its VAE makes 4" in said


def test_a_scheduler_that_the_family_cannot_use_is_refused_with_those_that_it_can() -> None:
    said = _refusal("flux", scheduler="dpmpp-2m")
    assert "declare flow-euler in models.toml" in said


@pytest.mark.parametrize("name", TOYS)
def test_the_part_that_no_encoder_reads_is_named(name: str) -> None:
    backend = toy_backend(name, 1, **TOYS[name].spec)
    assert backend.truncated_part("a fox") is None
    text = "word " * 250 + "the Very End"
    cut = backend.truncated_part(text)
    assert cut is not None
    assert text.endswith(cut)
    assert len(text) - len(cut) > 40


@pytest.mark.parametrize("name", TOYS)
def test_previews_look_like_the_image(name: str) -> None:
    """The map is fitted to the VAE, and what a step shows has its latents' size."""
    toy = TOYS[name]
    backend = toy_backend(name, 1, **toy.spec)
    image_request = request(guidance_scale=toy.guidance, scheduler=toy.schedulers[0], previews=True)
    made = make_alone(backend, image_request)
    assert made.seen is not None
    with torch.no_grad():
        clean = backend._family.clean(made.seen, image_request)
        known = backend._family.latents_of(torch.zeros(1, 3, 64, 64))
    assert clean.shape == known.shape
    assert torch.isfinite(clean).all()
