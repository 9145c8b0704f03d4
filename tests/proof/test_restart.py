"""Same seed and settings, same bytes: idle or under load, and in another process."""

import hashlib
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from numpy.typing import NDArray

from tests.unit.engine.toys import request, toy_engine, toy_folder
from worker.engine.diffusion import DiffusionEngine
from worker.engine.interface import ImageRequest

pytestmark = pytest.mark.long

LIMIT = 300.0
SEEDS = range(12)

_OTHER_PROCESS = """
import sys
from tests.proof.test_restart import digests_when_idle
from shared.core.model_catalog import ModelSpec
from worker.engine.diffusion import DiffusionEngine

size = {"default_width": 64, "default_height": 64}
spec = ModelSpec(name="toy-sd15", source=sys.argv[1], max_batch_size=4, **size)
engine = DiffusionEngine(spec, "cpu")
engine.load()
print("\\n".join(digests_when_idle(engine)))
engine.close()
"""


def digests_when_idle(engine: DiffusionEngine) -> list[str]:
    """One image after the other."""
    return [_digest(engine.submit(_asked(seed)).future.result(LIMIT).pixels) for seed in SEEDS]


def test_idle_loaded_and_restarted_give_the_same_bytes() -> None:
    engine = toy_engine("sd15", max_batch_size=4)
    idle = digests_when_idle(engine)
    with ThreadPoolExecutor(len(SEEDS)) as pool:
        loaded = list(
            pool.map(
                lambda seed: _digest(engine.submit(_asked(seed)).future.result(LIMIT).pixels), SEEDS
            )
        )
    engine.close()
    restarted = subprocess.run(
        [sys.executable, "-c", _OTHER_PROCESS, str(toy_folder("sd15"))],
        capture_output=True,
        text=True,
        check=True,
        timeout=LIMIT,
    )
    assert loaded == idle
    assert restarted.stdout.split() == idle
    assert len(set(idle)) == len(SEEDS)


def _asked(seed: int) -> ImageRequest:
    schedulers = ("euler-ancestral", "dpmpp-2m-sde", "heun", "pndm")
    return request(seed=seed, scheduler=schedulers[seed % 4], steps=4 + seed % 5)


def _digest(pixels: NDArray[np.uint8]) -> str:
    return hashlib.sha256(pixels.tobytes()).hexdigest()
