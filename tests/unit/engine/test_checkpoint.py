"""A checkpoint that cannot be served is refused with one clear sentence."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from shared.core.errors import ModelUnavailable
from tests.unit.engine.toys import toy_folder, toy_spec
from worker.engine import open_engine
from worker.engine.checkpoint import content_hash


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A copy that a test may damage."""
    return Path(shutil.copytree(toy_folder("sd15"), tmp_path / "model"))


def refusal(source: Path | str, revision: str | None = None) -> str:
    engine = open_engine(toy_spec("sd15", source=str(source), revision=revision), device="cpu")
    with pytest.raises(ModelUnavailable) as raised:
        engine.load()
    message = raised.value.message
    assert len(message.splitlines()) == 1
    return message


def _edit_index(folder: Path, change: Callable[[dict[str, object]], None]) -> None:
    path = folder / "model_index.json"
    index = json.loads(path.read_text())
    change(index)
    path.write_text(json.dumps(index))


def test_a_missing_folder(tmp_path: Path) -> None:
    assert "does not exist" in refusal(tmp_path / "nothing")


def test_a_folder_that_is_no_checkpoint(tmp_path: Path) -> None:
    assert "model_index.json is missing" in refusal(tmp_path)


def test_a_missing_component(folder: Path) -> None:
    shutil.rmtree(folder / "vae")
    assert "folder vae is missing" in refusal(folder)


def test_pickled_weights(folder: Path) -> None:
    weights = folder / "unet" / "diffusion_pytorch_model.safetensors"
    weights.rename(folder / "unet" / "diffusion_pytorch_model.bin")
    assert "pickled weights (unet/diffusion_pytorch_model.bin)" in refusal(folder)


def test_truncated_weights(folder: Path) -> None:
    weights = folder / "unet" / "diffusion_pytorch_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1000])
    assert "is truncated: 1000 bytes are missing" in refusal(folder)


def test_weights_that_are_something_else(folder: Path) -> None:
    (folder / "unet" / "diffusion_pytorch_model.safetensors").write_bytes(b"<html>not found</html>")
    assert "is not a safetensors file" in refusal(folder)


def test_missing_weights(folder: Path) -> None:
    (folder / "vae" / "diffusion_pytorch_model.safetensors").unlink()
    assert "vae has no .safetensors weights" in refusal(folder)


def test_weights_that_do_not_fit_the_config(folder: Path) -> None:
    shutil.copy(
        folder / "vae" / "diffusion_pytorch_model.safetensors",
        folder / "unet" / "diffusion_pytorch_model.safetensors",
    )
    assert "the weights of unet do not fit its config" in refusal(folder)


def test_a_pipeline_that_makes_no_images_from_text(folder: Path) -> None:
    _edit_index(folder, lambda index: index.update(_class_name="StableDiffusionUpscalePipeline"))
    assert "not a text-to-image pipeline" in refusal(folder)


def test_a_checkpoint_that_brings_its_own_code(folder: Path) -> None:
    _edit_index(folder, lambda index: index.update(_class_name=["pipeline.py", "Mine"]))
    assert "pipeline code of its own, which is never run" in refusal(folder)


def test_a_hub_id_without_a_revision() -> None:
    assert "pins no revision" in refusal("somebody/something")


def test_the_hash_follows_the_contents_and_nothing_else(folder: Path, tmp_path: Path) -> None:
    original = content_hash(folder)
    assert content_hash(Path(shutil.copytree(folder, tmp_path / "elsewhere"))) == original
    (folder / "README.md").write_text("a note")
    assert content_hash(folder) == original
    config = folder / "scheduler" / "scheduler_config.json"
    config.write_text(config.read_text().replace("0.012", "0.013"))
    assert content_hash(folder) != original
