"""Each way in which a device fails, injected through the device interface."""

import threading
import time
import weakref
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from shared.core.errors import DeviceLost, InternalError, JobError, NanOutput, OutOfMemory
from tests.processes import slowness
from tests.unit.engine.faulty import FaultyDevice, Hang, out_of_memory, poisoned
from tests.unit.engine.toys import request, toy_engine, toy_spec
from tests.unit.engine.turns import Clock, WatchedClock, between_turns, submit_together
from worker.engine import loop
from worker.engine.device import WorkKind, open_device
from worker.engine.diffusion import DiffusionEngine
from worker.engine.interface import Canceled, FaultCallback

LIMIT = 60.0


def faulty_engine(
    fault: Callable[[WorkKind, Any], Any],
    on_fault: FaultCallback | None = None,
    **changes: Any,
) -> DiffusionEngine:
    engine = DiffusionEngine(toy_spec("sd15", **changes), FaultyDevice(fault), on_fault)
    engine.load()
    return engine


def test_out_of_memory_means_fewer_rows_and_loses_nothing() -> None:
    def fault(kind: WorkKind, result: Any) -> Any:
        if kind == "tick" and len(result) > 2 * 2:  # more than two guided rows do not fit
            raise out_of_memory()
        return result

    engine = faulty_engine(fault, max_batch_size=8)
    images = submit_together(engine, [request(seed=seed) for seed in range(3)])
    small = toy_engine("sd15", max_batch_size=2)
    for seed, ticket in enumerate(images):
        image = ticket.future.result(LIMIT)
        assert image.facts.batch_size == 2
        assert any("out of memory at 8 rows" in note for note in image.facts.notes)
        expected = small.submit(request(seed=seed)).future.result(LIMIT)
        assert np.array_equal(image.pixels, expected.pixels)
    assert engine.counters.out_of_memory_shrinks == 2
    later = engine.submit(request()).future.result(LIMIT)
    assert (later.facts.batch_size, later.facts.notes) == (2, ())
    engine.close()
    small.close()


def test_rows_that_do_not_fit_at_a_large_size_still_fit_at_smaller_ones() -> None:
    def fault(kind: WorkKind, result: Any) -> Any:
        if kind == "tick" and result.shape[-1] > 64 // 8 and len(result) > 2 * 1:
            raise out_of_memory()
        return result

    engine = faulty_engine(fault, max_batch_size=4)
    rows = [
        engine.submit(request(width=width, steps=2)).future.result(LIMIT).facts.batch_size
        for width in (64, 96, 128, 64)
    ]
    assert rows == [4, 1, 1, 4]
    assert engine.counters.out_of_memory_shrinks == 2, "what did not fit was tried at a larger size"
    engine.close()


def test_out_of_memory_in_the_middle_of_an_image_starts_it_anew() -> None:
    ticks = 0

    def fault(kind: WorkKind, result: Any) -> Any:
        nonlocal ticks
        ticks += kind == "tick"
        if kind == "tick" and ticks == 3:
            raise out_of_memory()
        return result

    engine = faulty_engine(fault, max_batch_size=2)
    image = engine.submit(request(scheduler="euler-ancestral")).future.result(LIMIT)
    one = toy_engine("sd15", max_batch_size=1)
    expected = one.submit(request(scheduler="euler-ancestral")).future.result(LIMIT)
    assert image.facts.batch_size == 1
    assert np.array_equal(image.pixels, expected.pixels)
    engine.close()
    one.close()


def test_memory_that_suffices_for_no_row_fails_the_image_alone() -> None:
    full = True

    def fault(kind: WorkKind, result: Any) -> Any:
        if full and kind == "tick":
            raise out_of_memory()
        return result

    engine = faulty_engine(fault)
    with pytest.raises(OutOfMemory):
        engine.submit(request()).future.result(LIMIT)
    full = False
    assert engine.submit(request()).future.result(LIMIT).facts.batch_size == 1
    engine.close()


def _nan_where(dtype: torch.dtype, kinds: tuple[WorkKind, ...]) -> Callable[[WorkKind, Any], Any]:
    """NaN from the given kinds of work, in the given precision only."""

    def fault(kind: WorkKind, result: Any) -> Any:
        if kind in kinds and isinstance(result, torch.Tensor) and result.dtype == dtype:
            return torch.full_like(result, torch.nan)
        return result

    return fault


def test_nan_from_the_vae_is_cured_by_the_vae_in_float32() -> None:
    engine = faulty_engine(_nan_where(torch.bfloat16, ("decode",)), dtype="bfloat16")
    image = engine.submit(request()).future.result(LIMIT)
    assert image.facts.notes == ("unsound: VAE run again in float32",)
    assert image.facts.dtype == "bfloat16"
    assert image.pixels.std() > 0
    engine.close()


def test_nan_from_the_unet_is_cured_by_everything_in_float32() -> None:
    engine = faulty_engine(
        _nan_where(torch.bfloat16, ("tick",)), dtype="bfloat16", max_batch_size=2
    )
    image = engine.submit(request()).future.result(LIMIT)
    assert image.facts.notes == ("unsound: made again at 1 row in float32 throughout",)
    assert (image.facts.dtype, image.facts.batch_size) == ("float32", 1)
    assert image.pixels.std() > 0
    engine.close()


@pytest.mark.parametrize("kind", ["decode", "tick"])
def test_a_want_of_memory_in_float32_is_answered_with_what_lies_unused(kind: WorkKind) -> None:
    """Float32 takes twice as much: the cached blocks are given back, and it is tried once more."""
    spoil = _nan_where(torch.bfloat16, (kind,))
    wanting = 1

    def fault(kind_now: WorkKind, result: Any) -> Any:
        nonlocal wanting
        if kind_now == kind and result.dtype == torch.float32 and wanting > 0:
            wanting -= 1
            raise out_of_memory()
        return spoil(kind_now, result)

    engine = faulty_engine(fault, dtype="bfloat16")
    image = engine.submit(request()).future.result(LIMIT)
    assert "float32" in image.facts.notes[0]
    assert image.pixels.std() > 0
    wanting = 2
    with pytest.raises(OutOfMemory):
        engine.submit(request()).future.result(LIMIT)
    engine.close()


def test_an_image_can_be_taken_back_while_it_is_made_again_in_float32(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """And each of its steps has the whole budget of a tick."""
    clock, budget = WatchedClock(LIMIT), 0.04
    monkeypatch.setattr(loop, "time", clock)
    taken_back: list[Any] = []
    spoil = _nan_where(torch.bfloat16, ("tick",))

    def fault(kind: WorkKind, result: Any) -> Any:
        if kind == "tick" and result.dtype == torch.float32:
            clock.sleep(0.75 * budget)
            for ticket in taken_back:
                ticket.cancel()
        return spoil(kind, result)

    faults: list[JobError] = []
    engine = faulty_engine(fault, faults.append, dtype="bfloat16", tick_budget=budget)
    image = engine.submit(request(steps=6)).future.result(LIMIT)
    assert image.facts.dtype == "float32"
    assert clock.now > 3 * budget
    assert faults == []
    between_turns(engine, lambda: taken_back.append(engine.submit(request(steps=12))))
    [ticket] = taken_back
    with pytest.raises(Canceled):
        ticket.future.result(LIMIT)
    assert engine.counters.canceled == 1
    assert ticket.gpu_seconds + image.gpu_seconds == pytest.approx(engine.busy_seconds, rel=0.01)
    engine.close()


def test_a_model_in_float32_is_gone_as_soon_as_its_image_is_made(
    float32_copies: list["weakref.ref[torch.nn.Module]"],
) -> None:
    """Not when the garbage collector comes: until then nothing else might fit."""
    engine = faulty_engine(_nan_where(torch.bfloat16, ("tick",)), dtype="bfloat16")
    engine.submit(request()).future.result(LIMIT)
    engine.close()  # Its last turn has ended.
    assert float32_copies
    assert [part() for part in float32_copies if part() is not None] == []


@pytest.mark.parametrize("value", [torch.nan, -1.0])
def test_nan_and_black_in_full_precision_fail_the_image(value: float) -> None:
    def fault(kind: WorkKind, result: Any) -> Any:
        return torch.full_like(result, value) if kind == "decode" else result

    engine = faulty_engine(fault)
    with pytest.raises(NanOutput):
        engine.submit(request()).future.result(LIMIT)
    engine.close()


@pytest.mark.parametrize("method", ["step", "scale_model_input"])
def test_a_failing_scheduler_fails_its_own_row_only(
    monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    import diffusers

    def fail(*_: Any, **__: Any) -> Any:
        raise ValueError("a bug in one scheduler")

    monkeypatch.setattr(diffusers.DDIMScheduler, method, fail)
    engine = toy_engine("sd15", max_batch_size=2)
    broken = engine.submit(request(scheduler="ddim"))
    neighbour = engine.submit(request(scheduler="euler"))
    with pytest.raises(InternalError):
        broken.future.result(LIMIT)
    assert neighbour.future.result(LIMIT).pixels.shape == (64, 64, 3)
    engine.close()


class Faults:
    """What the worker process is told."""

    def __init__(self) -> None:
        self.seen: list[JobError] = []
        self.told = threading.Event()
        self.told_at = 0.0

    def __call__(self, error: JobError) -> None:
        self.seen.append(error)
        self.told_at = time.monotonic()
        self.told.set()


def test_a_poisoned_context_hands_everything_back_within_seconds() -> None:
    broken_at: list[float] = []

    def fault(kind: WorkKind, result: Any) -> Any:
        if kind == "tick":
            broken_at.append(time.monotonic())
            raise poisoned()
        return result

    faults = Faults()
    engine = faulty_engine(fault, faults)
    tickets = submit_together(engine, [request(steps=500, seed=seed) for seed in range(3)])
    for ticket in tickets:
        assert isinstance(ticket.future.exception(LIMIT), DeviceLost)
    assert faults.told.wait(LIMIT)
    assert faults.told_at - broken_at[0] < 5 * slowness()
    assert len(broken_at) == 1
    assert len(faults.seen) == 1
    assert faults.seen[0].retryable
    with pytest.raises(DeviceLost):
        engine.submit(request())
    engine.close()


def test_a_hung_tick_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, budget = Clock(), 2.0
    monkeypatch.setattr(loop, "time", clock)
    hang, faults = Hang(), Faults()
    engine = faulty_engine(hang, faults, tick_budget=budget)
    engine.submit(request()).future.result(LIMIT)
    hang.armed = True
    tickets = submit_together(engine, [request(seed=seed) for seed in range(2)])
    assert hang.begun.wait(LIMIT)
    clock.sleep(budget + 0.1)
    for ticket in tickets:
        assert isinstance(ticket.future.exception(LIMIT), DeviceLost)
    assert faults.told.wait(LIMIT)
    with pytest.raises(DeviceLost):
        engine.submit(request())
    hang.release.set()
    engine.close()
    assert len(faults.seen) == 1


@pytest.mark.parametrize("error", [out_of_memory(), MemoryError()])
def test_want_of_memory_is_not_taken_for_a_broken_device(error: Exception) -> None:
    device = open_device("cpu")
    assert device.is_out_of_memory(error)
    assert not device.is_fatal(error)
    assert device.is_fatal(poisoned())
    assert not device.is_fatal(ValueError("anything"))
