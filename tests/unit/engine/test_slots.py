"""A row's place in the batch does not show in its bits, with several threads too."""

from collections.abc import Iterator

import pytest
import torch

from tests.unit.engine.toys import toy_backend
from worker.engine.backend import Shape
from worker.engine.unet import UnetInputs, UnetOverBuffers


@pytest.fixture
def two_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("rows", [2, 4])
@pytest.mark.usefixtures("two_threads")
def test_every_slot_gives_the_same_bits(rows: int) -> None:
    pipeline = toy_backend("sd21", 1)._loaded.pipeline
    inputs = UnetInputs.allocate(Shape(96, 64, guided=False, rows=rows), pipeline, False)
    unet = UnetOverBuffers(pipeline.unet, inputs, "off")
    generator = torch.Generator().manual_seed(0)
    sample = torch.randn(inputs.sample.shape[1:], generator=generator)
    outputs = []
    for slot in range(rows):
        inputs.sample.normal_(generator=generator)
        inputs.sample[slot] = sample
        with torch.no_grad():
            outputs.append(unet.run()[slot].clone())
    assert all(torch.equal(output, outputs[0]) for output in outputs)
