"""The step loop with its threads, over a simulated GPU."""

import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from typing import Any

import numpy as np
import pytest

from shared.core.errors import InvalidInput, ModelUnavailable
from shared.core.model_catalog import ModelSpec
from tests.processes import wait_until
from tests.unit.engine.toys import request
from tests.unit.engine.turns import (
    Clock,
    WatchedClock,
    after_ticks,
    between_turns,
)
from worker.engine import loop, open_engine, simulated
from worker.engine.in_flight import UsageMeter
from worker.engine.interface import Canceled, EngineClosed, StepUpdate
from worker.engine.notifier import MIN_INTERVAL
from worker.engine.simulated import SimulatedEngine, SimulatedSpeed

LIMIT = 30.0


def engine_of(rows: int = 2, tick: float = 0.005, **speed: float) -> SimulatedEngine:
    spec = ModelSpec(name="sim", source="simulated:", max_batch_size=rows)
    engine = SimulatedEngine(spec, SimulatedSpeed(tick_seconds=tick, row_seconds=0.0, **speed))
    engine.load()
    return engine


@pytest.fixture
def engine() -> Iterator[SimulatedEngine]:
    opened = engine_of()
    yield opened
    opened.close()


class Steps:
    """A step callback that remembers, and tells who waits for the first one."""

    def __init__(self) -> None:
        self.updates: list[StepUpdate] = []
        self.first = threading.Event()

    def __call__(self, update: StepUpdate) -> None:
        self.updates.append(update)
        self.first.set()

    def has_told(self, step: int) -> bool:
        """Whether it has heard of this step."""
        return any(update.step == step for update in list(self.updates))


def test_many_threads_get_their_own_images(engine: SimulatedEngine) -> None:
    results: dict[int, Any] = {}

    def submit(seed: int) -> None:
        results[seed] = engine.submit(request(seed=seed)).future.result(LIMIT).pixels

    threads = [threading.Thread(target=submit, args=(seed,)) for seed in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(LIMIT)
    alone = engine_of(rows=1)
    for seed, pixels in results.items():
        assert np.array_equal(pixels, alone.submit(request(seed=seed)).future.result(LIMIT).pixels)
    alone.close()


def test_device_seconds_add_up_to_the_busy_time() -> None:
    engine = engine_of(rows=4, encode_seconds=0.002, decode_seconds=0.003)
    tickets = [engine.submit(request(seed=seed, steps=3 + seed)) for seed in range(9)]
    tickets.append(engine.submit(request(steps=5000)))
    wait([ticket.future for ticket in tickets[:-1]], LIMIT)
    wait_until(lambda: tickets[-1].gpu_seconds > 0, LIMIT, "a tick of the last one")
    tickets[-1].cancel()
    assert isinstance(tickets[-1].future.exception(LIMIT), Canceled)
    for ticket in tickets[:-1]:
        assert ticket.future.result().gpu_seconds == ticket.gpu_seconds
    billed = sum(ticket.gpu_seconds for ticket in tickets)
    assert billed == pytest.approx(engine.busy_seconds, rel=0.01)
    engine.close()


def test_cancel_takes_one_image_back_and_leaves_its_neighbour(engine: SimulatedEngine) -> None:
    tickets: list[Any] = []
    ticks: list[int] = []

    def note(*_: Any) -> None:
        ticks.append(engine.counters.ticks)

    def submit() -> None:
        tickets.extend(engine.submit(request(steps=steps)) for steps in (5000, 20))
        tickets[0].future.add_done_callback(note)

    def cancel() -> None:
        note()
        tickets[0].cancel()

    after_ticks(engine, 5, cancel)
    between_turns(engine, submit)
    long, neighbour = tickets
    assert isinstance(long.future.exception(LIMIT), Canceled)
    assert neighbour.future.result(LIMIT).pixels.shape == (64, 64, 3)
    wait_until(lambda: len(ticks) == 2, LIMIT, "both notes")
    assert ticks[1] - ticks[0] <= 2
    assert engine.counters.canceled == 1


def test_an_interactive_image_pauses_bulk_and_bulk_goes_on(engine: SimulatedEngine) -> None:
    bulk: list[Any] = []
    interactive: list[Any] = []
    done_before: list[bool] = []

    def interrupt() -> None:
        ticket = engine.submit(request(seed=9, steps=5))
        ticket.future.add_done_callback(lambda _: done_before.extend(t.future.done() for t in bulk))
        interactive.append(ticket)

    after_ticks(engine, 5, interrupt)
    asked = [request(seed=seed, steps=60, queue_class="bulk") for seed in range(2)]
    between_turns(engine, lambda: bulk.extend(engine.submit(each) for each in asked))
    made = [ticket.future.result(LIMIT) for ticket in bulk]
    first = interactive[0].future.result(LIMIT)
    assert done_before == [False, False]
    assert engine.counters.pauses == 1
    for image in made:
        assert image.finished_at > first.finished_at
    assert engine.counters.steps_by_queue_class == {"interactive": 5, "bulk": 120}


def test_steps_are_told_seldom_and_the_last_one_always() -> None:
    engine = engine_of(rows=1, tick=0.002)
    steps, began = Steps(), time.monotonic()
    engine.submit(request(steps=100, previews=True), steps).future.result(LIMIT)
    wait_until(lambda: steps.has_told(100), LIMIT, "the last step")
    lasted = time.monotonic() - began
    assert [update.step for update in steps.updates] == sorted({u.step for u in steps.updates})
    assert steps.updates[-1].step == 100
    assert steps.updates[-1].steps == 100
    assert len(steps.updates) <= 2 + lasted / MIN_INTERVAL  # the first, and the last one
    assert all(update.preview_webp for update in steps.updates)
    engine.close()


def test_a_failing_callback_harms_nobody(engine: SimulatedEngine) -> None:
    def fail(_: StepUpdate) -> None:
        raise RuntimeError("no")

    assert engine.submit(request(), fail).future.result(LIMIT).facts.batch_size == 2


def test_strength_shortens_the_way(engine: SimulatedEngine) -> None:
    steps = Steps()
    engine.submit(request(steps=10, strength=0.5), steps).future.result(LIMIT)
    assert steps.first.wait(LIMIT)
    assert steps.updates[0].steps == 5


def test_a_request_may_fix_its_rows(engine: SimulatedEngine) -> None:
    assert engine.submit(request(batch_size=7)).future.result(LIMIT).facts.batch_size == 7


def test_what_cannot_be_done_is_refused_at_once(engine: SimulatedEngine) -> None:
    with pytest.raises(InvalidInput):
        engine.submit(request(scheduler="no-such"))
    with pytest.raises(InvalidInput):
        engine.submit(request(steps=3, strength=0.1))


def test_closing_gives_unfinished_images_back(engine: SimulatedEngine) -> None:
    ticket = engine.submit(request(steps=5000))
    engine.close()
    assert isinstance(ticket.future.exception(LIMIT), Canceled)
    with pytest.raises(EngineClosed):
        engine.submit(request())


def test_what_cannot_be_let_go_keeps_no_model_on_the_device(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    engine, freed = engine_of(), threading.Event()

    def fail() -> None:
        raise RuntimeError("a fault of ours")

    monkeypatch.setattr(engine._ticks, "stop", fail)
    monkeypatch.setattr(engine._backend, "close", freed.set)
    engine.close()
    assert freed.wait(LIMIT)
    assert "could not be let go" in caplog.text


def test_who_waits_for_the_engine_hears_of_its_end(engine: SimulatedEngine) -> None:
    """A warm-up behind another one, when the engine is closed."""
    under_way, end = threading.Event(), threading.Event()

    def slow_warm_up() -> Any:
        under_way.set()
        assert end.wait(LIMIT)

    engine._backend.warm_up = slow_warm_up  # type: ignore[method-assign]
    with ThreadPoolExecutor(3) as threads:
        first = threads.submit(engine.warm_up)
        assert under_way.wait(LIMIT)
        second = threads.submit(engine.warm_up)
        wait_until(lambda: bool(engine._commands), LIMIT, "the second warm-up")
        closing = threads.submit(engine.close)
        wait_until(lambda: engine._closed, LIMIT, "the end")
        end.set()
        assert isinstance(second.exception(LIMIT), EngineClosed)
        assert first.exception(LIMIT) is None
        closing.result(LIMIT)


def test_many_decodings_hold_up_neither_each_other_nor_the_watchdog(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Eight at 0.02 s, where a piece of work may last 0.05 s."""
    clock = WatchedClock(LIMIT)
    monkeypatch.setattr(loop, "time", clock)
    monkeypatch.setattr(simulated, "time", clock)
    faults: list[Any] = []
    ended: list[float] = []
    spec = ModelSpec(name="sim", source="simulated:", max_batch_size=8, tick_budget=0.05)
    speed = SimulatedSpeed(tick_seconds=0.002, row_seconds=0.0, decode_seconds=0.02)
    engine = SimulatedEngine(spec, speed, on_fault=faults.append)
    engine.load()

    def submit() -> list[Any]:
        tickets = [engine.submit(request(seed=seed)) for seed in range(8)]
        for ticket in tickets:
            ticket.future.add_done_callback(lambda _: ended.append(clock.now))
        return tickets

    for ticket in between_turns(engine, submit):
        assert ticket.future.result(LIMIT).pixels.shape == (64, 64, 3)
    wait_until(lambda: len(ended) == 8, LIMIT, "the note of the last end")
    engine.close()
    assert len(set(ended)) == 8
    assert faults == []


def test_between_two_ticks_images_are_decoded_for_as_long_as_a_tick_lasts(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Five at 0.021 s beside a tick of 0.1 s: neither one by one nor all at once."""
    monkeypatch.setattr(simulated, "time", Clock())
    engine = engine_of(rows=9, tick=0.1, decode_seconds=0.021)
    ended: list[int] = []

    def submit() -> list[Any]:
        engine.submit(request(steps=500))
        tickets = [engine.submit(request(seed=seed, steps=2)) for seed in range(8)]
        for ticket in tickets:
            ticket.future.add_done_callback(lambda _: ended.append(engine.counters.ticks))
        return tickets

    wait([ticket.future for ticket in between_turns(engine, submit)], LIMIT)
    engine.close()
    assert len(ended) == 8
    # The first one is alone: how long it takes is not known yet.
    assert list(Counter(ended).values()) == [1, 5, 2]


def test_an_engine_that_is_not_loaded_says_so() -> None:
    engine = open_engine(ModelSpec(name="sim", source="simulated:"))
    with pytest.raises(EngineClosed):
        engine.submit(request())
    engine.close()


@pytest.mark.parametrize("source", ["simulated:nonsense", "simulated:speed=3"])
def test_a_simulated_source_that_makes_no_sense(source: str) -> None:
    engine = open_engine(ModelSpec(name="sim", source=source))
    with pytest.raises(ModelUnavailable):
        engine.load()


def test_padding_is_counted(engine: SimulatedEngine) -> None:
    engine.submit(request(steps=4)).future.result(LIMIT)
    counters = engine.counters
    assert (counters.ticks, counters.live_rows, counters.padded_rows) == (4, 4, 4)
    assert (counters.images, counters.canceled) == (1, 0)


def test_the_time_of_a_tick_is_a_mean_in_which_the_last_one_counts_a_fifth() -> None:
    meter = UsageMeter()
    for seconds in (2.0, 2.0, 4.0):
        meter.bill_tick(1, [], seconds)
    assert meter.tick_seconds == pytest.approx(2.4)
    assert meter.busy_seconds == 8.0
