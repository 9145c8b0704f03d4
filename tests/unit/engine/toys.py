"""Toy checkpoints, built once per process, and engines and backends over them."""

import atexit
import shutil
import tempfile
from collections.abc import Iterable
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch

from shared.core.model_catalog import ModelSpec
from tests.toy_models import save_toy
from worker.engine.batched_backend import BatchedBackend
from worker.engine.device import Device, open_device
from worker.engine.diffusion import DiffusionEngine
from worker.engine.families import family_of
from worker.engine.interface import ImageRequest
from worker.engine.loaded import load

torch.set_num_threads(1)  # toys are small: on a busy machine a second thread is only waited for


@lru_cache
def toy_folder(family: str) -> Path:
    """The toy checkpoint of a family."""
    home = Path(tempfile.mkdtemp(prefix="darkroom-toy-"))
    atexit.register(shutil.rmtree, home, ignore_errors=True)
    folder = home / family
    save_toy(family, folder)
    return folder


def toy_spec(family: str, **changes: Any) -> ModelSpec:
    """A model over a toy checkpoint."""
    values: dict[str, Any] = {
        "name": f"toy-{family}",
        "source": str(toy_folder(family)),
        "scheduler": scheduler_of(family),
        "default_width": 64,
        "default_height": 64,
        "max_width": 128,
        "max_height": 128,
        "default_steps": 4,
        "max_batch_size": 1,
        "cpu_threads": 1,
    }
    return ModelSpec(**{**values, **changes})


def toy_engine(family: str, device: Device | None = None, **changes: Any) -> DiffusionEngine:
    """A loaded engine over a toy checkpoint; close it."""
    engine = DiffusionEngine(toy_spec(family, **changes), device or open_device("cpu"))
    engine.load()
    return engine


def scheduler_of(family: str) -> str:
    """The usual scheduler of a toy's family."""
    if family == "lcm":
        return "lcm"
    if family == "sprint":
        return "scm"
    flow = family.startswith(
        ("sd3", "flux", "schnell", "sana", "klein", "qwen", "zimage", "lumina2")
    )
    return "flow-euler" if flow else "dpmpp-2m"


@lru_cache
def toy_backend(family: str, rows: int, *, on: str = "cpu", **changes: Any) -> BatchedBackend:
    """A backend without an engine around it, for tests that drive the turns themselves."""
    return open_backend(toy_spec(family, max_batch_size=rows, **changes), open_device(on))


def open_backend(spec: ModelSpec, device: Device) -> BatchedBackend:
    """A backend over a checkpoint of any family."""
    loaded = load(spec, device)
    found = family_of(loaded.pipeline)
    assert found is not None
    return BatchedBackend(loaded, found)


def request(**changes: Any) -> ImageRequest:
    """A small image of a fox."""
    values: dict[str, Any] = {
        "prompt": "a red fox in the snow",
        "negative_prompt": None,
        "seed": 7,
        "width": 64,
        "height": 64,
        "steps": 4,
        "guidance_scale": 7.5,
        "scheduler": "dpmpp-2m",
    }
    return ImageRequest(**{**values, **changes})


def long_but(quick: Iterable[object], values: Iterable[object]) -> list[Any]:
    """Parameters of which `make test` takes the quick ones; the rest is long."""
    import pytest  # which a GPU machine need not have: `make bench-gpu` takes its toys from here

    chosen = set(quick)
    return [
        pytest.param(
            *(value if isinstance(value, tuple) else (value,)),
            marks=() if value in chosen else pytest.mark.long,
        )
        for value in values
    ]
