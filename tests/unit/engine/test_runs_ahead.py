"""The loop as on a GPU, where one piece of work stays queued while the host prepares the next.

On a CPU work is done when the call returns; here it is merely settled as late as on CUDA.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch

from tests.unit.engine.faulty import FaultyDevice, out_of_memory
from tests.unit.engine.toys import request, toy_engine
from tests.unit.engine.turns import between_turns
from worker.engine.device import Device, WorkKind
from worker.engine.diffusion import DiffusionEngine
from worker.engine.interface import Canceled

LIMIT = 60.0


class Ahead(Device):
    """A CPU whose work is settled one piece late."""

    runs_ahead = 1


class FaultyAhead(FaultyDevice):
    """The same, failing on demand."""

    runs_ahead = 1


@pytest.fixture
def engine() -> Iterator[DiffusionEngine]:
    opened = toy_engine("sd15", Ahead(torch.device("cpu")), max_batch_size=4)
    yield opened
    opened.close()


def test_bits_and_bills_are_the_same(engine: DiffusionEngine) -> None:
    """With joins, leaves, cancellations, two sizes and more images than rows."""
    image_request = [
        request(seed=seed, steps=3 + seed % 4, width=64 + 32 * (seed % 2), scheduler=scheduler)
        for seed, scheduler in enumerate(["euler", "heun", "lms", "dpmpp-2m", "ddim"] * 2)
    ]

    def submit_and_cancel() -> list[Any]:
        tickets = [engine.submit(each) for each in image_request]
        tickets[4].cancel()
        return tickets

    tickets = between_turns(engine, submit_and_cancel)
    plain = toy_engine("sd15", max_batch_size=4)
    same = [plain.submit(each) for each in image_request]
    for number, (expected, ticket) in enumerate(zip(same, tickets, strict=True)):
        if number == 4:
            assert isinstance(ticket.future.exception(LIMIT), Canceled)
            continue
        image = ticket.future.result(LIMIT)
        assert np.array_equal(image.pixels, expected.future.result(LIMIT).pixels)
    plain.close()
    engine.close()  # The last bill is settled.
    billed = sum(ticket.gpu_seconds for ticket in tickets)
    assert billed == pytest.approx(engine.busy_seconds, rel=0.01)


def test_the_last_image_does_not_wait_for_another(engine: DiffusionEngine) -> None:
    for seed in range(3):
        assert engine.submit(request(seed=seed)).future.result(LIMIT).pixels.std() > 0


@pytest.mark.parametrize("kind", ["encode", "tick", "decode"])
def test_a_want_of_memory_loses_nothing(kind: WorkKind) -> None:
    failures = iter([True, True])

    def fault(done: WorkKind, result: Any) -> Any:
        if done == kind and next(failures, False):
            raise out_of_memory()
        return result

    engine = toy_engine("sd15", FaultyAhead(fault), max_batch_size=2)
    for ticket in [engine.submit(request(seed=seed)) for seed in range(4)]:
        assert ticket.future.result(LIMIT).pixels.std() > 0
    engine.close()


@pytest.mark.long
def test_nan_is_cured_behind_a_queued_tick() -> None:
    def fault(kind: WorkKind, result: Any) -> Any:
        if kind == "decode" and result.dtype == torch.bfloat16:
            return torch.full_like(result, torch.nan)
        return result

    engine = toy_engine("sd15", FaultyAhead(fault), max_batch_size=2, dtype="bfloat16")
    tickets = [engine.submit(request(seed=seed, steps=3 + seed)) for seed in range(4)]
    for ticket in tickets:
        assert ticket.future.result(LIMIT).facts.notes == ("unsound: VAE run again in float32",)
    engine.close()
    billed = sum(ticket.gpu_seconds for ticket in tickets)
    assert billed == pytest.approx(engine.busy_seconds, rel=0.01)
