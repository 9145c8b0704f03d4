"""(b), (d), (e), (f): images per second, the time of a tick, and the host's part in it."""

import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import diffusers
import torch

from shared.core.schedulers import SCHEDULERS
from tests.bench.gpu.models import Opened, free
from tests.bench.gpu.record import Numbers
from worker.engine.batched_backend import BatchedBackend
from worker.engine.loop import StepLoop
from worker.engine.network import Compile

NAMES = {"off": "eager", "graphs": "graphs", "inductor": "inductor"}

Measure = Callable[[], Iterator[tuple[str, Numbers]]]


@dataclass(frozen=True)
class Load:
    """How much work a number is drawn from."""

    rounds: int
    """How often the rows are filled for one number."""
    repeats: int
    newcomers: int


def bare(model: Opened, batch: int, load: Load) -> Measure:
    """diffusers' own call in a loop."""

    def measure() -> Iterator[tuple[str, Numbers]]:
        call = bare_call(model)
        call(range(batch))
        rates = []
        for _ in range(load.repeats):
            started = time.perf_counter()
            for number in range(load.rounds):
                call(range(number * batch, (number + 1) * batch))
            rates.append(load.rounds * batch / (time.perf_counter() - started))
        yield f"diffusers, batch {batch}", {"images/s": statistics.median(rates)}

    return measure


def bare_call(model: Opened) -> Callable[[Sequence[int]], None]:
    """The pipeline over a list of seeds, pixels on the host when it returns."""
    pipeline, choice = model.pipeline, SCHEDULERS[model.scheduler]
    base = pipeline.scheduler.config

    def call(seeds: Sequence[int]) -> None:
        pipeline.scheduler = getattr(diffusers, choice.class_name).from_config(
            base, **choice.overrides
        )
        pipeline(
            [model.request(seed).prompt for seed in seeds],
            num_inference_steps=model.steps,
            guidance_scale=model.guidance_scale,
            width=model.side,
            height=model.side,
            generator=[torch.Generator("cpu").manual_seed(seed) for seed in seeds],
            output_type="np",
        )

    return call


def engine(model: Opened, rows: int, mode: Compile, load: Load) -> Measure:
    """Rows that are always full, decoding included."""

    def measure() -> Iterator[tuple[str, Numbers]]:
        backend = model.backend(rows, mode)
        loop = open_loop(backend)
        try:
            warm = loop.warm_up()
            numbers = one_tick(model, backend, rows)
            numbers |= throughput(model, loop, rows, load, mode)
            numbers["warm-up (s)"] = warm.seconds
            yield f"engine, {NAMES[mode]}, {rows} rows", numbers
        finally:
            loop.close()
            free()

    return measure


def ticks(model: Opened, rows: int) -> Measure:
    """A few whole images at once, eagerly."""

    def measure() -> Iterator[tuple[str, Numbers]]:
        backend = model.backend(rows, "off")
        numbers = one_tick(model, backend, rows)
        loop = open_loop(backend)
        try:
            numbers |= throughput(model, loop, rows, Load(rounds=1, repeats=1, newcomers=0))
            numbers["ticks/s × rows"] = rows / numbers["tick (ms)"] * 1000
            yield f"{model.name}, {model.side}², {rows} rows", numbers
        finally:
            loop.close()
            free()

    return measure


def open_loop(backend: BatchedBackend) -> StepLoop[Any]:
    """An engine over the backend; close it."""
    loop: StepLoop[Any] = StepLoop(lambda: backend, None, tick_budget=600.0)
    loop.load()
    return loop


@torch.no_grad()
def one_tick(model: Opened, backend: BatchedBackend, rows: int) -> dict[str, Any]:
    """Medians of a full tick: on the device, and what of it the host has to compute.

    The device is idle when a tick begins, so that the host never waits for a place in its queue.
    """
    requests = [model.request(seed) for seed in range(rows)]
    shape = backend.shape_of(requests[0])
    states = [backend.prepare(one, shape)[0] for one in requests]
    device, host = [], []
    for _ in range(model.steps):
        backend._device.mark().wait()
        began = time.thread_time()
        work = backend.tick(shape, states)
        host.append(time.thread_time() - began)
        device.append(work()[1])
    for state in states:
        if state.error is not None:
            raise state.error
        backend.discard(state)
    later = slice(1, None)  # the first one allocates and chooses kernels
    return {
        "tick (ms)": 1000 * statistics.median(device[later]),
        "host (ms a tick)": 1000 * statistics.median(host[later]),
    }


def throughput(
    model: Opened, loop: StepLoop[Any], rows: int, load: Load, mode: Compile = "off"
) -> dict[str, Any]:
    """Images per second; `notes`: what went otherwise than planned."""
    rates, notes = [], set[str]()
    for _ in range(load.repeats):
        count = rows * load.rounds
        started = time.perf_counter()
        tickets = [loop.submit(model.request(seed)) for seed in range(count)]
        images = [ticket.future.result() for ticket in tickets]
        rates.append(count / (time.perf_counter() - started))
        notes |= {note for image in images for note in image.facts.notes}
    numbers: dict[str, Any] = {"images/s": statistics.median(rates)}
    if rows != images[0].facts.batch_size:
        notes.add(f"ran at {images[0].facts.batch_size} rows")
    if mode != images[0].facts.speed["compile"]:
        notes.add("ran eagerly")
    if notes:
        numbers["notes"] = "; ".join(sorted(notes))
    return numbers
