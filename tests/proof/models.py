"""The models of the full proof: the toys, and the demo model once it is in the repository."""

import os
from functools import lru_cache
from pathlib import Path

import deploy
from shared.core.model_catalog import ModelSpec
from tests.unit.engine.toys import open_backend, scheduler_of, toy_backend, toy_folder
from worker.engine.batched_backend import BatchedBackend
from worker.engine.device import open_device

CROWDS = int(os.environ.get("DARKROOM_PROOF_CROWDS", "200"))
"""`make test-all` makes fewer, and shortens other tests by it."""

_DEMO = Path(deploy.__file__).parent / "demo_model" / "checkpoint"

FAMILIES = ("sd15", "sd21", "sd21v", "sdxl", "turbo", "lcm") + (("demo",) if _DEMO.is_dir() else ())


def folder_of(family: str) -> Path:
    """Where the checkpoint is."""
    return _DEMO if family == "demo" else toy_folder(family)


@lru_cache
def warmed(family: str) -> BatchedBackend:
    """The model after its warm-up, in batches of up to eight where sizes agree."""
    side = 128 if family == "demo" else 64
    size = {"default_width": side, "default_height": side}
    spec = ModelSpec(
        name=family,
        source=str(folder_of(family)),
        max_batch_size=8,
        cpu_threads=1,
        scheduler=scheduler_of(family),
        **size,
    )
    backend = open_backend(spec, open_device("cpu"))
    backend.warm_up()
    return backend


@lru_cache
def backend_of(family: str, rows: int) -> BatchedBackend:
    """The model at so many rows, loaded once."""
    if family != "demo":
        return toy_backend(family, rows)
    spec = ModelSpec(name="demo", source=str(_DEMO), max_batch_size=rows)
    return open_backend(spec, open_device("cpu"))
