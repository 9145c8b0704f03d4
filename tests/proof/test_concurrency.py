"""The full proof in crowds: 200 at 2, at 4 and at 8 rows, and the bits of the row never change."""

from random import Random

import numpy as np
import pytest
import torch

from shared.core.schedulers import DIFFUSION_SCHEDULERS
from tests.proof.models import CROWDS, FAMILIES, backend_of, folder_of, warmed
from tests.unit.engine.concurrency import make_alone, make_among_others, random_request
from tests.unit.engine.reference import reference

pytestmark = pytest.mark.long

CROWDS_PER_IMAGE = 4


@pytest.mark.parametrize("family", FAMILIES)
def test_crowds_in_batches_of_as_many_as_there_are(family: str) -> None:
    """After the warm-up, with rows joining and leaving: the bits of the image alone."""
    backend, random = warmed(family), Random(family)
    schedulers = ("lcm",) if family == "lcm" else tuple(DIFFUSION_SCHEDULERS)
    for _ in range(max(1, CROWDS // CROWDS_PER_IMAGE // 5)):
        image_request = random_request(random, schedulers)
        alone = make_alone(backend, image_request)
        if backend._model.base == 1 and image_request.hires is None:
            expected = reference(folder_of(family)).latents(image_request)
            assert torch.equal(alone.latents, expected), image_request
        for _ in range(CROWDS_PER_IMAGE):
            crowded = make_among_others(backend, image_request, random, schedulers)
            assert torch.equal(crowded.latents, alone.latents), image_request
            assert np.array_equal(crowded.pixels, alone.pixels), image_request


@pytest.mark.parametrize("rows", [2, 4, 8])
def test_two_hundred_crowds(rows: int) -> None:
    random = Random(rows)
    for image in range(CROWDS // CROWDS_PER_IMAGE):
        family = FAMILIES[image % len(FAMILIES)]
        backend = backend_of(family, rows)
        schedulers = ("lcm",) if family == "lcm" else tuple(DIFFUSION_SCHEDULERS)
        image_request = random_request(random, schedulers)
        alone = make_alone(backend, image_request)
        for _ in range(CROWDS_PER_IMAGE):
            crowded = make_among_others(backend, image_request, random, schedulers)
            assert torch.equal(crowded.latents, alone.latents), image_request
            assert np.array_equal(crowded.pixels, alone.pixels), image_request
