"""The engine: how full it keeps a simulated GPU, how soon newcomers start, what it adds alone."""

import worker.engine  # noqa: F401  (before torch: its threads must sleep, not spin)

# isort: split
import os
import statistics
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from random import Random
from typing import Any

import torch
from PIL import Image
from torch.utils._python_dispatch import TorchDispatchMode

import deploy
from shared.core.model_catalog import IpAdapterSpec, ModelSpec
from shared.core.schedulers import DIFFUSION_SCHEDULERS
from tests.bench.row import Row, make_row, percentile
from tests.toy_models import build_ip_adapter
from tests.unit.engine.concurrency import make_alone, make_among_others
from tests.unit.engine.loras import toy_loras
from tests.unit.engine.reference import reference
from tests.unit.engine.test_controls import control
from tests.unit.engine.toys import request, toy_backend, toy_folder, toy_spec
from worker.engine.batched_backend import BatchedBackend
from worker.engine.diffusion import DiffusionEngine
from worker.engine.interface import ImageRequest, Mask, Reference
from worker.engine.simulated import SimulatedEngine, SimulatedSpeed

_REPEATS = 5
_ROWS = 8
_SPEED = SimulatedSpeed(tick_seconds=0.02, row_seconds=0.0025, decode_seconds=0.01)
_TICK = _SPEED.tick_seconds + _ROWS * _SPEED.row_seconds
_CROWDS = 24
_LAUNCH = 5e-6
"""Seconds of the host for a kernel, about what PyTorch takes."""
_NO_KERNELS = ("aten::_unsafe_view", "aten::detach", "aten::empty.memory_format")
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
    yield from _on_a_cpu()
    yield _masked()
    yield from _with_loras()
    yield _switch()
    yield from _with_images()
    yield make_row(
        "same seed in random crowds at 4 rows: bit-exact",
        [_exact_share()],
        unit="of images",
        goal=1.0,
        better="higher",
        baseline=f"{_CROWDS} crowds against the image alone",
    )


def _simulated() -> SimulatedEngine:
    engine = SimulatedEngine(
        ModelSpec(name="sim", source="simulated:", max_batch_size=_ROWS), _SPEED
    )
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
        image_request = request(
            seed=number,
            width=512,
            height=512,
            steps=random.randint(5, 25),
            scheduler=random.choice(tuple(DIFFUSION_SCHEDULERS)),
        )
        engine.submit(image_request).future.add_done_callback(count)
    enough.wait()
    took, counters = time.perf_counter() - started, engine.counters
    engine.close()
    best = counters.live_rows * _TICK / _ROWS + counters.images * _SPEED.decode_seconds
    return best / took


def _first_step(seed: int) -> float:
    """From submission to the start of the first tick, bulk holding every row."""
    engine, random = _simulated(), Random(seed)
    for number in range(_ROWS):
        engine.submit(request(seed=number, steps=100_000, queue_class="bulk"))
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


def _on_a_cpu() -> Iterator[Row]:
    """The demo model as shipped against diffusers' own calls, turn about: an image alone, and a
    burst of eight against one call of eight, with the same threads and MKL setting."""
    folder = _DEMO if _DEMO.is_dir() else toy_folder("sd15")
    name = "demo model" if _DEMO.is_dir() else "toy model"
    side = 128 if _DEMO.is_dir() else 64
    size: dict[str, Any] = {"default_width": side, "default_height": side}
    engine = DiffusionEngine(ModelSpec(name="cpu", source=str(folder), **size), "cpu")
    engine.load()
    warmed = engine.warm_up()
    torch.set_num_threads(engine.model.cpu_threads or 1)  # diffusers runs on this thread
    requests = [
        request(steps=20, width=side, height=side, seed=seed, prompt=f"{seed} red foxes")
        for seed in range(_ROWS)
    ]
    bare = reference(folder)
    expected = [engine.submit(each).future.result().pixels for each in requests]
    alone, burst, exact = [], [], []
    for number in range(2 * _REPEATS):
        one = requests[number % _ROWS]
        ours = _seconds(partial(_make, engine, one))
        alone.append(ours / _seconds(partial(bare.pixels, one)))
        started = time.perf_counter()
        tickets = [engine.submit(each) for each in requests]
        images = [ticket.future.result().pixels for ticket in tickets]
        took = time.perf_counter() - started
        burst.append(_seconds(lambda: bare.together(requests)) / took)
        exact += [bool((a == b).all()) for a, b in zip(images, expected, strict=True)]
    engine.close()
    setting = f"{engine.model.cpu_threads} threads, MKL_CBWR={os.environ['MKL_CBWR']}"
    yield make_row(
        f"an image alone, {name} as shipped",
        alone,
        unit="of baseline",
        goal=1.05,
        better="lower",
        baseline=f"diffusers' own pipeline call, same process, {setting}",
    )
    yield make_row(
        f"images/s of a burst of {_ROWS}, {name} as shipped",
        burst,
        unit="of baseline",
        goal=0.9,
        better="higher",
        baseline=f"one call of diffusers' pipeline for all {_ROWS}, {setting}",
    )
    yield make_row(
        "the same burst: each image has the bytes that it has alone",
        [sum(exact) / len(exact)],
        unit="of images",
        goal=1.0,
        better="higher",
        baseline=f"alone; batches of {', '.join(map(str, warmed.agreeing_sizes))} agree",
    )


def _masked() -> Row:
    """An image of which a part is repainted against the same from the whole one, turn about."""
    side = 128 if _DEMO.is_dir() else 64
    folder = _DEMO if _DEMO.is_dir() else toy_folder("sd15")
    engine = DiffusionEngine(ModelSpec(name="mask", source=str(folder), max_batch_size=1), "cpu")
    engine.load()
    start, white = Image.new("RGB", (side, side), "grey"), Image.new("L", (side, side))
    white.paste(255, (side // 4, side // 4, side // 2, side // 2))
    fields = {"steps": 20, "width": side, "height": side, "init_image": start, "strength": 1.0}
    whole, part = request(**fields), request(**fields, mask=Mask(white))
    for asked in (whole, part):
        _make(engine, asked)
    ratios = []
    for _ in range(2 * _REPEATS):
        pairs = [
            [_cpu_seconds(lambda asked=asked: _make(engine, asked)) for asked in (part, whole)]
            for _ in range(3)
        ]
        masked, plain = (statistics.median(times) for times in zip(*pairs, strict=True))
        ratios.append(masked / plain)
    engine.close()
    return make_row(
        "an image of which a part is repainted",
        ratios,
        unit="of baseline",
        goal=1.02,
        better="lower",
        baseline="CPU time of the same image from an image, without a mask",
    )


def _with_loras() -> Iterator[Row]:
    """Four rows with a LoRA each, all different, against the same rows without, turn about."""
    backend, loras = toy_backend("sd15", 4), toy_loras("sd15").values()
    adapted = [request(seed=seed, steps=4, loras=(lora,)) for seed, lora in enumerate(loras)]
    plain = [replace(asked, loras=()) for asked in adapted]
    yield _against(backend, adapted, plain, "with 4 different LoRAs", goal=0.4)
    launches = []
    for batch in (plain, adapted):
        with _Launches() as counted:
            _make_together(backend, batch)
        launches.append(counted.count / adapted[0].steps)
    kernels = _SPEED.tick_seconds + 4 * _SPEED.row_seconds
    without, with_loras = (max(kernels, _LAUNCH * count) for count in launches)
    yield make_row(
        "images/s of 4 rows with 4 different LoRAs, simulated launches",
        [without / with_loras],
        unit="of baseline",
        goal=0.95,
        better="higher",
        baseline=f"the same rows without LoRAs; {_LAUNCH * 1e6:.0f} µs a launch, "
        f"{kernels * 1000:.0f} ms of kernels a tick; "
        f"{launches[1]:.0f} launches of the toy a tick, without LoRAs {launches[0]:.0f}",
    )


def _with_images() -> Iterator[Row]:
    """Four rows of which one has a ControlNet, or each a reference image."""
    plain = [request(seed=seed, steps=4) for seed in range(4)]
    net = control("sd15")
    controlled = [replace(plain[0], controls=(net,)), *plain[1:]]
    yield _against(
        toy_backend("sd15", 4), controlled, plain, "of which one has a ControlNet", goal=0.5
    )
    looking = [
        replace(asked, references=(Reference(net.image, str(seed), 0.6),))
        for seed, asked in enumerate(plain)
    ]
    with tempfile.TemporaryDirectory() as folder:
        build_ip_adapter(toy_folder("sd15"), Path(folder))
        adapter = IpAdapterSpec(source=folder, file="ip-adapter.safetensors")
        backend = toy_backend("sd15", 4, ip_adapter=adapter)
        yield _against(backend, looking, plain, "with a reference image each", goal=0.8)


def _against(
    backend: BatchedBackend,
    changed: Sequence[ImageRequest],
    plain: Sequence[ImageRequest],
    what: str,
    *,
    goal: float,
) -> Row:
    """Rows that are steered against the same without, turn about."""
    for batch in (changed, plain):
        _make_together(backend, batch)
    ratios = []
    for _ in range(_REPEATS):
        times = [
            _cpu_seconds(lambda batch=batch: _make_together(backend, batch))
            for batch in (plain, changed)
        ]
        ratios.append(times[0] / times[1])
    return make_row(
        f"images/s of 4 rows {what}, toy model on a CPU",
        ratios,
        unit="of baseline",
        goal=goal,
        better="higher",
        baseline="CPU time of the same rows without",
    )


class _Launches(TorchDispatchMode):
    """Counts what would each be a kernel on a GPU."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += not (func.is_view or func.name() in _NO_KERNELS)
        return func(*args, **(kwargs or {}))


def _make_together(backend: BatchedBackend, requests: Sequence[ImageRequest]) -> None:
    """The images in one batch, without a loop around it."""
    shape = backend.shape_of(requests[0])
    rows = [backend.prepare(asked, shape)[0] for asked in requests]
    while not rows[0].finished:
        backend.tick(shape, rows)
    for row in rows:
        backend.decode(row)()
        backend.discard(row)


def _switch() -> Row:
    """Images that change between two LoRAs that are loaded against such that keep one."""
    engine = DiffusionEngine(toy_spec("sd15"), "cpu")
    engine.load()
    first, second, *_ = (request(steps=4, loras=(lora,)) for lora in toy_loras("sd15").values())
    keeping = [(first, first), (second, second)]
    for asked in (first, second):
        _make(engine, asked)
    extra = []
    for _ in range(_REPEATS):
        kept = sum(
            _cpu_seconds(lambda asked=asked: _make(engine, asked))
            for pair in keeping
            for asked in pair
        )
        switched = sum(
            _cpu_seconds(lambda asked=asked: _make(engine, asked))
            for asked in (first, second, first, second)
        )
        tick = kept / (4 * first.steps)
        extra.append((switched - kept) / 4 / tick)
    engine.close()
    return make_row(
        "what a change between two cached LoRAs costs an image",
        extra,
        unit="ticks",
        goal=1.0,
        better="lower",
        baseline="CPU time of the same images, each with the LoRA of the last one",
    )


def _exact_share() -> float:
    backend, random = toy_backend("sd15", 4), Random(0)
    exact = 0
    for number in range(_CROWDS):
        image_request = request(
            seed=number // 6, scheduler=tuple(DIFFUSION_SCHEDULERS)[number // 6]
        )
        alone = make_alone(backend, image_request)
        crowded = make_among_others(backend, image_request, random, tuple(DIFFUSION_SCHEDULERS))
        exact += bool((alone.pixels == crowded.pixels).all())
    return exact / _CROWDS


def _seconds(action: Callable[[], object]) -> float:
    started = time.perf_counter()
    action()
    return time.perf_counter() - started


def _cpu_seconds(action: Callable[[], object]) -> float:
    """Of all threads: a busy machine does not count."""
    started = time.process_time()
    action()
    return time.process_time() - started


def _make(engine: DiffusionEngine, image_request: ImageRequest) -> None:
    engine.submit(image_request).future.result()
