"""The models of the full proof: the toys, and the demo model once it is in the repository."""

from functools import lru_cache
from pathlib import Path

import deploy
from shared.core.model_catalog import ModelSpec
from tests.unit.engine.toys import toy_backend, toy_folder
from worker.engine.device import open_device
from worker.engine.loaded import load
from worker.engine.unet_backend import UnetBackend, family_of

_DEMO = Path(deploy.__file__).parent / "demo_model" / "checkpoint"

FAMILIES = ("sd15", "sd21", "sd21v", "sdxl", "turbo", "lcm") + (("demo",) if _DEMO.is_dir() else ())


def folder_of(family: str) -> Path:
    """Where the checkpoint is."""
    return _DEMO if family == "demo" else toy_folder(family)


@lru_cache
def backend_of(family: str, rows: int) -> UnetBackend:
    """The model at so many rows, loaded once."""
    if family != "demo":
        return toy_backend(family, rows)
    loaded = load(ModelSpec(name="demo", source=str(_DEMO), rows=rows), open_device("cpu"))
    found = family_of(loaded.pipeline)
    assert found is not None
    return UnetBackend(loaded, found)
