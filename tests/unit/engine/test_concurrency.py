"""At a fixed number of rows an image's bits do not depend on its neighbours (the short proof).

The full proof, with 200 crowds for each number of rows, is `tests/proof`.
"""

from collections.abc import Iterator
from random import Random

import numpy as np
import pytest
import torch

from shared.core.schedulers import DIFFUSION_SCHEDULERS
from tests.unit.engine.concurrency import make_alone, make_among_others
from tests.unit.engine.toys import long_but, request, toy_backend
from worker.engine.backend import Shape
from worker.engine.network import NetworkOverBuffers

ALL = tuple(DIFFUSION_SCHEDULERS)


@pytest.mark.parametrize("seed", long_but([0], range(2)))
@pytest.mark.parametrize("rows", long_but([4], [2, 4]))
@pytest.mark.parametrize(
    "scheduler",
    long_but(["euler-ancestral"], ["dpmpp-2m", "euler-ancestral", "heun", "pndm"]),
)
def test_a_row_is_the_same_in_any_crowd(rows: int, scheduler: str, seed: int) -> None:
    backend = toy_backend("sd15", rows)
    image_request = request(scheduler=scheduler, steps=5)
    alone = make_alone(backend, image_request)
    crowded = make_among_others(backend, image_request, Random(seed), ALL)
    assert torch.equal(crowded.latents, alone.latents)
    assert np.array_equal(crowded.pixels, alone.pixels)


@pytest.mark.long
@pytest.mark.parametrize("family", ["sdxl", "lcm"])
def test_other_families_too(family: str) -> None:
    backend = toy_backend(family, 4)
    schedulers = ("lcm",) if family == "lcm" else ALL
    image_request = request(scheduler=schedulers[-1])
    alone = make_alone(backend, image_request)
    crowded = make_among_others(backend, image_request, Random(3), schedulers)
    assert torch.equal(crowded.latents, alone.latents)


@pytest.mark.parametrize("pipeline", ["image_pipeline", "inpaint_pipeline"])
def test_the_first_initial_image_leaves_rows_in_flight_as_they_are(pipeline: str) -> None:
    """diffusers corrects the config of the scheduler that a new pipeline is given."""
    model = toy_backend("sd21v", 1)._model
    image_request = request(scheduler="ddim")
    vars(model.family).pop(pipeline, None)
    row = model.prepare(image_request, model.shape(image_request, 1))
    before = dict(row.scheduler.config)
    assert getattr(model.family, pipeline)
    assert dict(row.scheduler.config) == before


def test_the_proof_would_notice_another_seed() -> None:
    backend = toy_backend("sd15", 2)
    assert not np.array_equal(
        make_alone(backend, request(seed=1)).pixels, make_alone(backend, request(seed=2)).pixels
    )


def test_between_shapes_only_the_last_bits_differ() -> None:
    one = make_alone(toy_backend("sd15", 1), request()).latents
    four = make_alone(toy_backend("sd15", 4), request()).latents
    assert (one - four).abs().max() < 1e-3


def test_at_more_rows_latents_of_either_layout_share_a_batch() -> None:
    """Those of an initial image may come channels-last; the others' bits are theirs, too."""
    backend = toy_backend("sd15", 2)
    shape = backend.shape_of(request())
    made = []
    for layout in (torch.contiguous_format, torch.channels_last):
        rows = [backend.prepare(request(seed=seed), shape)[0] for seed in (1, 2)]
        rows[1].latents = rows[1].latents.to(memory_format=layout)
        assert backend.tick(shape, rows)()[0] == 2
        made.append(torch.cat([row.latents for row in rows]))
        for row in rows:
            backend.discard(row)
    assert torch.equal(*made)


# --- A row's place in the batch does not show in its bits, with several threads too ---


@pytest.fixture
def two_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("rows", [2, 4])
@pytest.mark.usefixtures("two_threads")
def test_every_slot_gives_the_same_bits(rows: int) -> None:
    family = toy_backend("sd21", 1)._family
    unet = NetworkOverBuffers(
        family, Shape(96, 64, rows), ("positive",), "off", channels_last=False
    )
    generator = torch.Generator().manual_seed(0)
    text = {"timestep": torch.ones(1), "tokens": torch.zeros(1, 77, 32)}
    unet.fill((slot, text) for slot in range(rows))
    sample = torch.randn(1, 4, 8, 12, generator=generator)
    outputs = []
    for slot in range(rows):
        noise = [torch.randn(1, 4, 8, 12, generator=generator) for _ in range(rows)]
        noise[slot] = sample
        unet.fill((index, {"sample": each}) for index, each in enumerate(noise))
        with torch.no_grad():
            outputs.append(unet.run()[slot].clone())
    assert all(torch.equal(output, outputs[0]) for output in outputs)
