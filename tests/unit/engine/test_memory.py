"""Memory that does not suffice, wherever it fails, and memory that is let go of in time."""

import gc
import threading
import weakref
from typing import Any

import numpy as np
import pytest
import torch

from shared.core.errors import ModelUnavailable, OutOfMemory
from tests.processes import wait_until
from tests.unit.engine.faulty import FaultyDevice, out_of_memory
from tests.unit.engine.toys import request, toy_engine, toy_spec
from worker.engine.device import Device, WorkKind, open_device
from worker.engine.diffusion import DiffusionEngine
from worker.engine.interface import Canceled
from worker.engine.previews import PreviewMap
from worker.engine.rescue import _with_parts

LIMIT = 60.0


class SmallDevice(FaultyDevice):
    """One kind of work fits only while a size has a few rows at most."""

    def __init__(self, kind: WorkKind, most: int) -> None:
        super().__init__(self._check)
        self.engine: DiffusionEngine | None = None
        self._kind = kind
        self._most = most

    def _check(self, kind: WorkKind, result: Any) -> Any:
        assert self.engine is not None
        backend = self.engine._backend
        if kind == self._kind and backend.most(backend.shape_of(request())) > self._most:
            raise out_of_memory()
        return result


def small_engine(kind: WorkKind, most: int, **changes: Any) -> DiffusionEngine:
    device = SmallDevice(kind, most)
    device.engine = DiffusionEngine(toy_spec("sd15", **changes), device)
    device.engine.load()
    return device.engine


@pytest.mark.parametrize("kind", ["encode", "decode"])
def test_a_want_of_memory_beside_the_ticks_means_fewer_rows_too(kind: WorkKind) -> None:
    engine = small_engine(kind, most=2, max_batch_size=8)
    images = [engine.submit(request(seed=seed)) for seed in range(5)]
    made = [image.future.result(LIMIT) for image in images]
    assert engine.counters.out_of_memory_shrinks == 2
    assert engine.submit(request()).future.result(LIMIT).facts.batch_size == 2
    engine.close()
    rows = {image.facts.batch_size for image in made}
    same = {count: toy_engine("sd15", max_batch_size=count) for count in rows}
    for seed, image in enumerate(made):
        expected = same[image.facts.batch_size].submit(request(seed=seed)).future.result(LIMIT)
        assert np.array_equal(image.pixels, expected.pixels)
    for each in same.values():
        each.close()


@pytest.mark.parametrize("kind", ["encode", "decode"])
def test_a_want_of_memory_at_one_row_fails_the_image_alone(kind: WorkKind) -> None:
    engine = small_engine(kind, most=0, max_batch_size=2)
    for _ in range(2):
        with pytest.raises(OutOfMemory):
            engine.submit(request()).future.result(LIMIT)
    engine.close()


@pytest.mark.long
@pytest.mark.parametrize("too_slow", [0.0, 1000.0], ids=["in one piece", "in pieces"])
@pytest.mark.parametrize("kind", ["tick", "decode"])
def test_the_warm_up_finds_the_rows_that_fit(
    kind: WorkKind, too_slow: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whether the measurement keeps the pieces decides which sizes agree: 1 to 8, or 2 to 7."""
    monkeypatch.setattr("worker.engine.agreement._TOO_SLOW", too_slow)
    engine = small_engine(kind, most=2, max_batch_size=8, warm_sizes=((64, 64),))
    engine.warm_up()
    backend = engine._backend
    assert backend.most(backend.shape_of(request())) == 2
    image = engine.submit(request()).future.result(LIMIT)
    assert image.facts.notes == ()
    engine.close()


@pytest.mark.long
def test_the_warm_up_of_a_larger_size_begins_with_the_rows_that_a_smaller_one_was_left_with() -> (
    None
):
    ticks: list[int] = []

    def check(kind: WorkKind, result: Any) -> Any:
        if kind == "tick":
            ticks.append(len(result) // 2)  # guided
            if ticks[-1] > 4:
                raise out_of_memory()
        return result

    changes = {"max_batch_size": 8, "warm_sizes": ((64, 64), (128, 64))}
    engine = toy_engine("sd15", FaultyDevice(check), default_guidance_scale=5.0, **changes)
    engine.warm_up()
    backend = engine._backend
    for width in (64, 128):
        assert backend.most(backend.shape_of(request(width=width))) == 4
    assert len([rows for rows in ticks if rows > 4]) == 1
    engine.close()


def test_a_size_that_fits_at_no_rows_makes_the_model_unavailable() -> None:
    engine = small_engine("tick", most=0, max_batch_size=2)
    with pytest.raises(ModelUnavailable, match="64x64"):
        engine.warm_up()
    engine.close()


def test_sizes_that_nobody_asks_for_any_more_hold_no_buffers() -> None:
    engine = toy_engine("sd15")
    for width in range(64, 64 + 16 * 8, 8):
        engine.submit(request(width=width, steps=1, scheduler="euler")).future.result(LIMIT)
    model: Any = engine._backend
    assert len(model._model._batches) <= 9
    engine.close()


def test_a_preview_that_cannot_be_drawn_costs_nothing_else(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def draw(*_: Any) -> Any:
        raise out_of_memory()

    engine = toy_engine("sd15")
    engine.warm_up()
    monkeypatch.setattr(PreviewMap, "draw", draw)
    seen: list[Any] = []
    image = engine.submit(request(previews=True), seen.append).future.result(LIMIT)
    assert image.pixels.std() > 0
    wait_until(lambda: seen, LIMIT, "an update")
    engine.close()
    assert {update.preview_webp for update in seen} == {None}


def test_a_finished_image_is_gone_with_its_ticket() -> None:
    engine = toy_engine("sd15")
    ticket = engine.submit(request())
    result = weakref.ref(ticket.future.result(LIMIT))
    engine.close()
    gc.disable()
    try:
        del ticket
        assert result() is None
    finally:
        gc.enable()


def test_a_closed_engine_ends_the_call_of_a_whole_pipeline() -> None:
    engine = toy_engine("pag")
    begun = threading.Event()
    ticket = engine.submit(request(steps=500, scheduler="euler"), lambda _: begun.set())
    assert begun.wait(LIMIT)
    engine.close()
    assert isinstance(ticket.future.exception(LIMIT), Canceled)
    assert "pipeline" not in [thread.name for thread in threading.enumerate()]


def test_a_whole_pipeline_in_float32_is_gone_as_soon_as_its_image_is_made(
    float32_copies: list["weakref.ref[torch.nn.Module]"],
) -> None:
    def spoil(kind: WorkKind, result: Any) -> Any:
        return np.full_like(result, np.nan) if kind == "decode" else result

    engine = toy_engine("pag", FaultyDevice(spoil), dtype="bfloat16")
    image = engine.submit(request(scheduler="euler")).future.result(LIMIT)
    engine.close()
    assert image.facts.dtype == "float32"
    assert float32_copies
    assert [part() for part in float32_copies if part() is not None] == []


def test_a_rescue_goes_by_the_checkpoint_s_own_schedule() -> None:
    """And not by the scheduler of whoever was prepared last, which the pipeline has then."""
    engine = toy_engine("sd15")
    backend: Any = engine._backend
    engine.submit(request(scheduler="dpmpp-2m")).future.result(LIMIT)
    family = backend._family
    assert _with_parts(family, {}).schedules is family.schedules
    engine.close()


def test_a_cuda_device_without_a_number_is_the_current_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """No GPU is needed to see that torch would refuse the device."""
    from torch.cuda._utils import _get_device_index

    chosen: list[int] = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 1)
    monkeypatch.setattr(
        torch.cuda, "set_device", lambda device: chosen.append(_get_device_index(device))
    )
    devices: list[Device] = [open_device(name) for name in (None, "cuda", "cuda:3")]
    assert chosen == [1, 1, 3]
    assert [device.torch_device.index for device in devices] == chosen
