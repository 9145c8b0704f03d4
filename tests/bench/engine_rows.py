"""The engine: how full it keeps a simulated GPU, how soon newcomers start, what it adds alone."""

import worker.engine  # noqa: F401  (before torch: its threads must sleep, not spin)

# isort: split
import statistics
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random

import deploy
from shared.core.model_catalog import ModelSpec
from shared.core.schedulers import SCHEDULERS
from tests.bench.row import Row, make_row, percentile
from tests.unit.engine.crowds import make_alone, make_in_crowd
from tests.unit.engine.reference import reference
from tests.unit.engine.toys import request, toy_backend, toy_folder
from worker.engine.diffusion import DiffusionEngine
from worker.engine.interface import ImageRequest
from worker.engine.simulated import SimulatedEngine, SimulatedSpeed

_REPEATS = 5
_ROWS = 8
_SPEED = SimulatedSpeed(tick_seconds=0.02, row_seconds=0.0025, decode_seconds=0.01)
_TICK = _SPEED.tick_seconds + _ROWS * _SPEED.row_seconds
_CROWDS = 24
_DEMO = Path(deploy.__file__).parent / "demo_model" / "checkpoint"


def rows() -> Iterator[Row]:
    """Simulated GPU first, then real pipelines."""
    yield make_row(
        "images/s of 8 saturated rows, mixed steps and schedulers",
        [_saturated(seed) for seed in range(_REPEATS)],
        unit="of optimum",
        goal=0.95,
        better="higher",
        baseline=f"simulated GPU: {_TICK * 1000:.0f} ms a tick, 10 ms a decode",
    )
    yield make_row(
        "wait for the first step in an engine full of bulk, p95",
        [_first_step(seed) for seed in range(_REPEATS)],
        unit="ticks",
        goal=1.0,
        better="lower",
        baseline=f"simulated GPU: {_TICK * 1000:.0f} ms a tick",
    )
    yield make_row(
        "until a canceled image's future tells so, p95",
        [_cancel(seed) for seed in range(_REPEATS)],
        unit="ticks",
        goal=1.05,  # one tick, and the wake-up of the thread that waits
        better="lower",
        baseline=f"simulated GPU: {_TICK * 1000:.0f} ms a tick",
    )
    yield _alone()
    yield make_row(
        "same seed in random crowds at 4 rows: bit-exact",
        [_exact_share()],
        unit="of images",
        goal=1.0,
        better="higher",
        baseline=f"{_CROWDS} crowds against the image alone",
    )


def _simulated() -> SimulatedEngine:
    engine = SimulatedEngine(ModelSpec(name="sim", source="simulated:", rows=_ROWS), _SPEED)
    engine.load()
    return engine


def _saturated(seed: int) -> float:
    """Device time that the work needs at best, over the time it took, while rows were wanted."""
    engine, random = _simulated(), Random(seed)
    total, done = 48, 0
    enough = threading.Event()

    def count(_: object) -> None:
        nonlocal done
        done += 1
        if done == total - _ROWS:
            enough.set()

    started = time.perf_counter()
    for number in range(total):
        asked = request(
            seed=number,
            width=512,
            height=512,
            steps=random.randint(5, 25),
            scheduler=random.choice(tuple(SCHEDULERS)),
        )
        engine.submit(asked).future.add_done_callback(count)
    enough.wait()
    took, counters = time.perf_counter() - started, engine.counters
    engine.close()
    best = counters.live_rows * _TICK / _ROWS + counters.images * _SPEED.decode_seconds
    return best / took


def _first_step(seed: int) -> float:
    """From submission to the start of the first tick, bulk holding every row."""
    engine, random = _simulated(), Random(seed)
    for number in range(_ROWS):
        engine.submit(request(seed=number, steps=100_000, lane="bulk"))
    waits = []
    for number in range(40):
        threading.Event().wait(random.uniform(0, 2 * _TICK))
        submitted = time.monotonic()
        image = engine.submit(request(seed=number, steps=2)).future.result()
        waits.append(image.started_at - submitted)
    engine.close()
    return percentile(waits, 0.95) / _TICK


def _cancel(seed: int) -> float:
    """From `cancel` to the future's `Canceled`."""
    engine, random = _simulated(), Random(seed)
    engine.submit(request(steps=100_000))
    waits = []
    for number in range(40):
        ticket = engine.submit(request(seed=number, steps=100_000))
        threading.Event().wait(random.uniform(_TICK, 3 * _TICK))
        canceled = time.monotonic()
        ticket.cancel()
        ticket.future.exception()
        waits.append(time.monotonic() - canceled)
    engine.close()
    return percentile(waits, 0.95) / _TICK


def _alone() -> Row:
    """An image at one row against diffusers' own call, turn about."""
    folder = _DEMO if _DEMO.is_dir() else toy_folder("sd15")
    name = "demo model" if _DEMO.is_dir() else "toy model"
    side = 128 if _DEMO.is_dir() else 64
    engine = DiffusionEngine(ModelSpec(name="alone", source=str(folder), rows=1), "cpu")
    engine.load()
    asked: ImageRequest = request(steps=20, width=side, height=side)
    bare = reference(folder)
    engine.submit(asked).future.result()
    bare.pixels(asked)
    ratios = []
    for _ in range(2 * _REPEATS):
        ours, theirs = [], []
        for _ in range(3):
            ours.append(_seconds(lambda: _make(engine, asked)))
            theirs.append(_seconds(lambda: bare.pixels(asked)))
        ratios.append(statistics.median(ours) / statistics.median(theirs))
    engine.close()
    return make_row(
        f"an alone image at 1 row, {name}",
        ratios,
        unit="of baseline",
        goal=1.02,
        better="lower",
        baseline="diffusers' own pipeline call, same process",
    )


def _exact_share() -> float:
    backend, random = toy_backend("sd15", 4), Random(0)
    exact = 0
    for number in range(_CROWDS):
        asked = request(seed=number // 6, scheduler=tuple(SCHEDULERS)[number // 6])
        alone = make_alone(backend, asked)
        crowded = make_in_crowd(backend, asked, random, tuple(SCHEDULERS))
        exact += bool((alone.pixels == crowded.pixels).all())
    return exact / _CROWDS


def _seconds(action: Callable[[], object]) -> float:
    started = time.perf_counter()
    action()
    return time.perf_counter() - started


def _make(engine: DiffusionEngine, asked: ImageRequest) -> None:
    engine.submit(asked).future.result()
