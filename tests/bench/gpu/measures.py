"""The measurements themselves, each a function from an engine to numbers."""

import math
import statistics
import time
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import torch

from shared.core.model_catalog import ModelSpec
from shared.core.schedulers import SCHEDULERS
from tests.bench.gpu.plan import Mode, Plan
from worker.engine.diffusion import DiffusionEngine
from worker.engine.interface import GeneratedImage, ImageRequest, Lane, WarmUpReport

Numbers = dict[str, Any]


def open_engine(
    plan: Plan, folder: Path, device: str, rows: int, mode: Mode
) -> tuple[DiffusionEngine, WarmUpReport]:
    """An engine at a fixed number of rows, warmed.

    Raises:
        MemoryError: the device has room for fewer rows only.
    """
    spec = ModelSpec(
        name=plan.model,
        source=str(folder),
        rows=rows,
        compile=mode,
        scheduler="dpmpp-2m",
        default_width=plan.side,
        default_height=plan.side,
        max_width=plan.side,
        max_height=plan.side,
    )
    engine = DiffusionEngine(spec, device)
    engine.load()
    try:
        report = engine.warm_up()
        fitting = report.tick_times[-1].rows
        if fitting != rows:
            raise MemoryError(f"room for {fitting} rows only")
    except BaseException:
        engine.close()
        raise
    return engine, report


def ask(plan: Plan, seed: int, scheduler: str = "dpmpp-2m", lane: Lane = "interactive") -> Any:
    """A request of the plan's size."""
    return ImageRequest(
        prompt=f"picture number {seed}",
        negative_prompt=None,
        seed=seed,
        width=plan.side,
        height=plan.side,
        steps=plan.steps,
        guidance_scale=7.5,
        scheduler=scheduler,
        lane=lane,
    )


def bare_loop(plan: Plan, folder: Path, device: str, batch: int) -> Numbers:
    """diffusers' own pipeline call in a loop, `batch` images at a time: images per second."""
    from diffusers import AutoPipelineForText2Image, DPMSolverMultistepScheduler

    dtype = torch.float32 if device == "cpu" else torch.float16
    pipeline = AutoPipelineForText2Image.from_pretrained(
        folder, dtype=dtype, use_safetensors=True
    ).to(device)
    pipeline.scheduler = DPMSolverMultistepScheduler.from_config(pipeline.scheduler.config)
    pipeline.set_progress_bar_config(disable=True)

    def call() -> float:
        started = time.perf_counter()
        pipeline(
            [f"picture number {seed}" for seed in range(batch)],
            num_inference_steps=plan.steps,
            width=plan.side,
            height=plan.side,
            generator=[torch.Generator().manual_seed(seed) for seed in range(batch)],
            output_type="np",
        )
        return batch / (time.perf_counter() - started)

    call()
    return {"batch": batch, **_spread([call() for _ in range(plan.repeats)])}


def throughput(plan: Plan, engine: DiffusionEngine, rows: int) -> Numbers:
    """Offline: rows are always full; images per second, decoding included."""
    rates = []
    for _ in range(plan.repeats):
        count = rows * plan.rounds
        started = time.perf_counter()
        tickets = [engine.submit(ask(plan, seed)) for seed in range(count)]
        for ticket in tickets:
            ticket.future.result()
        rates.append(count / (time.perf_counter() - started))
    return _spread(rates)


def exactness(plan: Plan, engine: DiffusionEngine) -> Numbers:
    """For each scheduler, the share of crowds in which the pixels were those of the image alone."""
    random, table = Random(0), {}
    for scheduler in SCHEDULERS:
        asked = ask(plan, 1, scheduler)
        alone = engine.submit(asked).future.result().pixels
        same = 0
        for _ in range(plan.crowds):
            crowd = [
                engine.submit(ask(plan, random.randrange(1000), random.choice(tuple(SCHEDULERS))))
                for _ in range(random.randint(1, 10))
            ]
            same += np.array_equal(engine.submit(asked).future.result().pixels, alone)
            for ticket in crowd:
                ticket.cancel()
        table[scheduler] = same / plan.crowds
    return table


def decibels(one: GeneratedImage, other: GeneratedImage) -> float | None:
    """Peak signal to noise ratio between two pictures; None if they are identical."""
    difference = one.pixels.astype(np.float64) - other.pixels
    error = float(np.mean(difference**2))
    return None if error == 0 else 10 * math.log10(255**2 / error)


def arrivals(plan: Plan, engine: DiffusionEngine, rate: float) -> Numbers:
    """Poisson arrivals at `rate` images per second: latency, and what came out per second."""
    random = Random(0)
    started = time.monotonic()
    due, tickets = started, []
    for seed in range(plan.arrivals):
        due += random.expovariate(rate)
        time.sleep(max(0.0, due - time.monotonic()))
        tickets.append((time.monotonic(), engine.submit(ask(plan, seed))))
    images = [(at, ticket.future.result()) for at, ticket in tickets]
    latencies = sorted(image.finished_at - at for at, image in images)
    return {
        "offered_per_second": rate,
        "done_per_second": len(images) / (max(i.finished_at for _, i in images) - started),
        "latency_p50": latencies[len(latencies) // 2],
        "latency_p99": latencies[min(len(latencies) - 1, int(0.99 * len(latencies)))],
    }


def newcomer(plan: Plan, engine: DiffusionEngine, rows: int) -> Numbers:
    """An interactive request into an engine full of bulk: seconds until its first tick."""
    waits = []
    for repeat in range(max(3, plan.repeats)):
        bulk = [engine.submit(ask(plan, seed, lane="bulk")) for seed in range(2 * rows)]
        ticks = engine.counters.ticks
        while engine.counters.ticks < ticks + 2:
            time.sleep(0.001)
        submitted = time.monotonic()
        image = engine.submit(ask(plan, 1000 + repeat)).future.result()
        waits.append(image.started_at - submitted)
        for ticket in bulk:
            ticket.cancel()
    return _spread(waits)


def _spread(values: list[float]) -> Numbers:
    return {"median": statistics.median(values), "min": min(values), "max": max(values)}
