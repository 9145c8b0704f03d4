"""The full proof in crowds: 200 at 2, at 4 and at 8 rows, and the bits of the row never change."""

from random import Random

import numpy as np
import pytest
import torch

from shared.core.schedulers import SCHEDULERS
from tests.proof.models import FAMILIES, backend_of
from tests.unit.engine.crowds import make_alone, make_in_crowd, random_request

CROWDS = 200
CROWDS_PER_IMAGE = 4


@pytest.mark.parametrize("rows", [2, 4, 8])
def test_two_hundred_crowds(rows: int) -> None:
    random = Random(rows)
    for image in range(CROWDS // CROWDS_PER_IMAGE):
        family = FAMILIES[image % len(FAMILIES)]
        backend = backend_of(family, rows)
        schedulers = ("lcm",) if family == "lcm" else tuple(SCHEDULERS)
        asked = random_request(random, schedulers)
        alone = make_alone(backend, asked)
        for _ in range(CROWDS_PER_IMAGE):
            crowded = make_in_crowd(backend, asked, random, schedulers)
            assert torch.equal(crowded.latents, alone.latents), asked
            assert np.array_equal(crowded.pixels, alone.pixels), asked
