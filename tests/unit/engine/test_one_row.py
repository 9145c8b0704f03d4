"""At one row an image equals, bit for bit, what diffusers' own pipeline call makes."""

import itertools
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from shared.core.schedulers import DIFFUSION_SCHEDULERS
from tests.unit.engine.concurrency import make_alone
from tests.unit.engine.reference import reference
from tests.unit.engine.toys import long_but, request, toy_backend, toy_folder
from worker.engine.interface import ImageRequest

START = Image.fromarray(np.random.default_rng(1).integers(0, 255, (90, 70, 3), dtype=np.uint8))
FROM_IMAGE: dict[str, Any] = {"init_image": START, "strength": 0.6, "steps": 5}


def assert_equal_to_diffusers(family: str, image_request: ImageRequest) -> None:
    """Latents and pixels, all bits."""
    made = make_alone(toy_backend(family, 1), image_request)
    latents, pixels = reference(toy_folder(family)).latents_and_pixels(image_request)
    assert torch.equal(made.latents, latents)
    assert np.array_equal(made.pixels, pixels)


@pytest.mark.parametrize("scheduler", DIFFUSION_SCHEDULERS)
def test_text_to_image(scheduler: str) -> None:
    assert_equal_to_diffusers("sd15", request(scheduler=scheduler, negative_prompt="blurry"))


@pytest.mark.parametrize(
    "scheduler",
    long_but(["ddim", "euler-ancestral", "heun", "pndm", "dpmpp-2m-sde"], DIFFUSION_SCHEDULERS),
)
def test_image_to_image(scheduler: str) -> None:
    assert_equal_to_diffusers("sd15", request(scheduler=scheduler, **FROM_IMAGE))


QUICK = {("sd21", "ddim"), ("sd21v", "dpmpp-2m-sde"), ("sdxl", "euler-ancestral")}
"""Each family and each scheduler once; the rest is long."""


@pytest.mark.parametrize(
    ("family", "scheduler"),
    [
        pytest.param(*pair, marks=() if pair in QUICK else pytest.mark.long)
        for pair in itertools.product(
            ("sd21", "sd21v", "sdxl"), ("ddim", "euler-ancestral", "dpmpp-2m-sde")
        )
    ],
)
def test_other_families(family: str, scheduler: str) -> None:
    assert_equal_to_diffusers(family, request(scheduler=scheduler))
    assert_equal_to_diffusers(
        family, request(scheduler=scheduler, negative_prompt="", **FROM_IMAGE)
    )


@pytest.mark.parametrize("changes", [{}, FROM_IMAGE, {"guidance_scale": 1.0}])
def test_latent_consistency_model(changes: dict[str, Any]) -> None:
    assert_equal_to_diffusers("lcm", request(scheduler="lcm", **changes))


@pytest.mark.parametrize("steps", [1, 4])
@pytest.mark.parametrize("changes", [{}, {"init_image": START, "strength": 1.0}])
def test_turbo(steps: int, changes: dict[str, Any]) -> None:
    image_request = request(scheduler="euler-ancestral", guidance_scale=0.0, steps=steps, **changes)
    assert toy_backend("turbo", 1).shape_of(image_request).variant == (False, 1)
    assert_equal_to_diffusers("turbo", image_request)


@pytest.mark.parametrize("changes", [{}, FROM_IMAGE])
def test_without_guidance_one_half_runs(changes: dict[str, Any]) -> None:
    image_request = request(guidance_scale=1.0, **changes)
    assert toy_backend("sd15", 1).shape_of(image_request).variant == (False, 1)
    assert_equal_to_diffusers("sd15", image_request)


def test_a_size_that_is_no_power_of_two() -> None:
    assert_equal_to_diffusers("sd15", request(width=104, height=72))


def test_the_largest_seed() -> None:
    assert_equal_to_diffusers("sd15", request(seed=2**53 - 1))


def test_the_default_size_is_not_needed_to_reproduce_a_cached_prompt() -> None:
    first = make_alone(toy_backend("sdxl", 1), request(negative_prompt="blurry"))
    again = make_alone(toy_backend("sdxl", 1), request(negative_prompt="blurry"))
    assert np.array_equal(first.pixels, again.pixels)
