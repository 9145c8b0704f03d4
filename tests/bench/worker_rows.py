"""Images a second of a whole worker against the bare step loop on the same simulated GPU.

The worker encodes 512x512 PNGs, uploads them and commits them while the GPU ticks on; the bare
loop throws its pixels away. 100 ms an image: 20 ticks of 40 ms at 8 rows.
"""

import time
from collections.abc import Iterator

from shared.core.model_catalog import load_catalog
from tests.bench.row import Row, make_row
from tests.bench.system import MODELS, System, running_system
from worker.engine import open_engine
from worker.engine.interface import Engine, ImageRequest

_IMAGES = 192
"""Twenty seconds: long against the first claims and the last commits, which nothing overlaps."""
_REPEATS = 5
_THREADS = 24


def rows() -> Iterator[Row]:
    """The ratio, interleaved."""
    spec = load_catalog(MODELS).get("tenth")
    assert spec is not None
    engine = open_engine(spec)
    engine.load()
    engine.warm_up()
    try:
        with running_system() as system:
            system.worker("tenth", _THREADS)
            _worker_seconds(system)
            ratios, ours = [], []
            for _ in range(_REPEATS):
                bare = _bare_seconds(engine)
                whole = _worker_seconds(system)
                ratios.append(bare / whole)
                ours.append(_IMAGES / whole)
    finally:
        engine.close()
    yield make_row(
        "images/s of the worker, 100 ms an image, 512x512",
        ratios,
        unit="of baseline",
        goal=0.98,
        better="higher",
        baseline=f"the bare step loop; ours {sorted(ours)[len(ours) // 2]:.2f} images/s",
    )


def _bare_seconds(engine: Engine) -> float:
    started = time.monotonic()
    tickets = [engine.submit(_request(seed)) for seed in range(_IMAGES)]
    for ticket in tickets:
        ticket.future.result()
    return time.monotonic() - started


def _worker_seconds(system: System) -> float:
    return system.seconds_of(
        _IMAGES, model="tenth", width=512, height=512, steps=20, cost=512 * 512 * 20
    )


def _request(seed: int) -> ImageRequest:
    return ImageRequest(
        prompt="a benchmark",
        negative_prompt=None,
        seed=seed,
        width=512,
        height=512,
        steps=20,
        guidance_scale=5.0,
        scheduler="ddim",
    )
