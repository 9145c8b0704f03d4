"""The full proof for the families of flow matching and PixArt: many requests, 200 crowds each."""

import itertools
from random import Random
from typing import Any

import numpy as np
import pytest
import torch

from shared.core.families import FAMILIES
from tests.proof.test_one_row import START
from tests.unit.engine.concurrency import make_alone, make_among_others
from tests.unit.engine.families import TOYS
from tests.unit.engine.reference import reference
from tests.unit.engine.toys import request, toy_backend, toy_folder

pytestmark = pytest.mark.timeout(3600)

CROWDS = 200
CROWDS_PER_IMAGE = 4
PROMPTS = ("a fox", "two boats and a lamp in the dark, oil on canvas, " * 3)


@pytest.mark.parametrize("name", TOYS)
def test_one_row_equals_diffusers(name: str) -> None:
    toy = TOYS[name]
    facts = FAMILIES[toy.family]
    kinds: list[dict[str, Any]] = [{}, {"width": 96}]
    if facts.image_to_image:
        kinds += [{"init_image": START, "strength": strength} for strength in (0.4, 1.0)]
    negatives = (None, "blurry, dark") if toy.negative else (None,)
    scales = (toy.guidance, toy.unguided)
    cases = itertools.product(facts.schedulers, kinds, negatives, scales, PROMPTS)
    for scheduler, kind, negative, scale, prompt in cases:
        image_request = request(
            scheduler=scheduler,
            prompt=prompt,
            negative_prompt=negative,
            guidance_scale=scale,
            steps=6,
            **kind,
        )
        made = make_alone(toy_backend(name, 1, **toy.spec), image_request)
        expected, more = reference(toy_folder(name)), toy.arguments(image_request)
        latents, pixels = expected.latents_and_pixels(image_request, more)
        assert torch.equal(made.latents, latents), image_request
        assert np.array_equal(made.pixels, pixels), image_request


@pytest.mark.parametrize("name", TOYS)
def test_two_hundred_crowds(name: str) -> None:
    toy, random = TOYS[name], Random(name)
    backend = toy_backend(name, 4, **toy.spec)
    for image in range(CROWDS // CROWDS_PER_IMAGE):
        image_request = request(
            seed=image,
            guidance_scale=random.choice((toy.guidance, toy.unguided)),
            scheduler=random.choice(toy.schedulers),
            prompt=random.choice(PROMPTS),
        )
        alone = make_alone(backend, image_request)
        for _ in range(CROWDS_PER_IMAGE):
            crowded = make_among_others(
                backend, image_request, random, toy.schedulers, toy.from_images
            )
            assert torch.equal(crowded.latents, alone.latents), image_request
            assert np.array_equal(crowded.pixels, alone.pixels), image_request
