"""The full proof at one row: every scheduler, family and kind of request, bit for bit."""

import itertools
from collections.abc import Iterable
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from shared.core.schedulers import DIFFUSION_SCHEDULERS
from tests.proof.models import CROWDS, FAMILIES, backend_of, folder_of
from tests.unit.engine.concurrency import make_alone
from tests.unit.engine.reference import reference
from tests.unit.engine.toys import request

pytestmark = pytest.mark.long

START = Image.fromarray(np.random.default_rng(5).integers(0, 255, (90, 70, 3), dtype=np.uint8))
KINDS: tuple[dict[str, Any], ...] = (
    {},
    {"init_image": START, "strength": 0.4},
    {"init_image": START, "strength": 1.0},
)
TEXTS: tuple[tuple[str | None, float], ...] = ((None, 7.5), ("blurry, dark", 7.5), (None, 1.0))
"""Negative prompts and guidance scales."""
CASES = [
    (family, scheduler)
    for family in FAMILIES
    for scheduler in (DIFFUSION_SCHEDULERS if family != "lcm" else ("lcm",))
]


@pytest.mark.parametrize(("family", "scheduler"), CASES)
def test_it_equals_diffusers(family: str, scheduler: str) -> None:
    backend, expected = backend_of(family, 1), reference(folder_of(family))
    for kind, (negative, guidance) in _combinations(CASES.index((family, scheduler))):
        image_request = request(
            scheduler=scheduler, negative_prompt=negative, guidance_scale=guidance, steps=6, **kind
        )
        made = make_alone(backend, image_request)
        latents, pixels = expected.latents_and_pixels(image_request)
        assert torch.equal(made.latents, latents), (kind, negative, guidance)
        assert np.array_equal(made.pixels, pixels), (kind, negative, guidance)


def _combinations(case: int) -> Iterable[tuple[dict[str, Any], tuple[str | None, float]]]:
    """All nine kinds and texts; where the proof is short each once, in turn with the next cases."""
    if CROWDS >= 200:
        return itertools.product(KINDS, TEXTS)
    return [(kind, TEXTS[(case + index) % len(TEXTS)]) for index, kind in enumerate(KINDS)]


@pytest.mark.parametrize("scheduler", DIFFUSION_SCHEDULERS)
def test_many_steps(scheduler: str) -> None:
    image_request = request(scheduler=scheduler, steps=50)
    made = make_alone(backend_of("sd15", 1), image_request)
    assert np.array_equal(made.pixels, reference(folder_of("sd15")).pixels(image_request))
