"""At a fixed number of rows an image's bits do not depend on its neighbours (the short proof).

The full proof, with 200 crowds for each number of rows, is `tests/proof`.
"""

from random import Random

import numpy as np
import pytest
import torch

from shared.core.schedulers import SCHEDULERS
from tests.unit.engine.crowds import make_alone, make_in_crowd
from tests.unit.engine.toys import request, toy_backend

ALL = tuple(SCHEDULERS)


@pytest.mark.parametrize("rows", [2, 4])
@pytest.mark.parametrize("scheduler", ["dpmpp-2m", "euler-ancestral", "heun", "pndm"])
def test_a_row_is_the_same_in_any_crowd(rows: int, scheduler: str) -> None:
    backend = toy_backend("sd15", rows)
    asked = request(scheduler=scheduler, steps=5)
    alone = make_alone(backend, asked)
    for seed in range(2):
        crowded = make_in_crowd(backend, asked, Random(seed), ALL)
        assert torch.equal(crowded.latents, alone.latents)
        assert np.array_equal(crowded.pixels, alone.pixels)


@pytest.mark.parametrize("family", ["sdxl", "lcm"])
def test_other_families_too(family: str) -> None:
    backend = toy_backend(family, 4)
    schedulers = ("lcm",) if family == "lcm" else ALL
    asked = request(scheduler=schedulers[-1])
    alone = make_alone(backend, asked)
    crowded = make_in_crowd(backend, asked, Random(3), schedulers)
    assert torch.equal(crowded.latents, alone.latents)


def test_the_proof_would_notice_another_seed() -> None:
    backend = toy_backend("sd15", 2)
    assert not np.array_equal(
        make_alone(backend, request(seed=1)).pixels, make_alone(backend, request(seed=2)).pixels
    )


def test_between_shapes_only_the_last_bits_differ() -> None:
    one = make_alone(toy_backend("sd15", 1), request()).latents
    four = make_alone(toy_backend("sd15", 4), request()).latents
    assert (one - four).abs().max() < 1e-3
