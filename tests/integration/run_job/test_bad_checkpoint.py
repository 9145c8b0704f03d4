"""A checkpoint that cannot be served: one clear sentence, an exit code, and jobs that wait."""

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.processes import Process

EXIT_CONFIGURATION = 78


def missing(folder: Path) -> None:
    """No folder at all."""


def pickled(folder: Path) -> None:
    """A diffusers folder whose weights are a pickle."""
    unet = folder / "unet"
    unet.mkdir(parents=True)
    (folder / "model_index.json").write_text(
        '{"_class_name": "StableDiffusionPipeline", "unet": ["diffusers", "UNet2DConditionModel"]}'
    )
    (unet / "config.json").write_text('{"_class_name": "UNet2DConditionModel"}')
    (unet / "diffusion_pytorch_model.bin").write_bytes(b"\x80\x04.")


@pytest.mark.parametrize("make", [missing, pickled])
def test_the_worker_says_why_and_leaves(
    make: Callable[[Path], None], environment: dict[str, str], tmp_path: Path
) -> None:
    make(tmp_path / "checkpoint")
    catalogue = tmp_path / "models.toml"
    catalogue.write_text('[[model]]\nname = "bad"\nsource = "./checkpoint"\n')
    worker = Process(
        {**environment, "DARKROOM_MODELS_FILE": str(catalogue)},
        ["-m", "worker", "generate"],
        tmp_path / "worker.log",
    )
    worker.start()
    assert worker.child.wait(90) == EXIT_CONFIGURATION
    said = [line for line in worker.tail().splitlines() if line.startswith("darkroom worker: ")]
    assert len(said) == 1
    assert str(tmp_path / "checkpoint") in said[0]
    assert "Traceback" not in worker.tail()
