"""Where ControlNets' files are, and by which hash receipts name them."""

from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from shared.core.errors import ControlNetUnavailable
from shared.core.model_catalog import ControlNetSpec
from worker.jobs.inputs import edges
from worker.models.controlnets import ControlNetFiles

CONTROL: dict[str, Any] = {"name": "net", "scale": 0.5, "start": 0, "end": 1}


def files(source: Path | str, **more: Any) -> ControlNetFiles:
    return ControlNetFiles(
        [ControlNetSpec(name="net", source=str(source), family="sd", **more)],
    )


def net(folder: Path, **weights: bytes) -> Path:
    (folder / "config.json").write_text("{}")
    for name, content in weights.items():
        (folder / f"{name}.safetensors").write_bytes(content)
    return folder


def found(catalogue: ControlNetFiles) -> Any:
    (control,) = catalogue.of([CONTROL], [Image.new("RGB", (8, 8))])
    return control


def test_the_hash_is_of_config_and_weights_as_they_are_now(tmp_path: Path) -> None:
    catalogue = files(net(tmp_path, a=b"1", b=b"22"))
    first = found(catalogue)
    assert (first.path, first.scale, first.end) == (tmp_path, 0.5, 1.0)
    assert found(catalogue).sha256 == first.sha256
    hashes = {first.sha256}
    for name in ("b.safetensors", "config.json"):
        (tmp_path / name).write_bytes(b"longer than before")
        hashes.add(found(catalogue).sha256)
    assert len(hashes) == 3


def test_one_file_of_a_folder_is_hashed_alone(tmp_path: Path) -> None:
    net(tmp_path, a=b"1", b=b"22")
    by_file, by_path = (
        found(files(tmp_path, file="a.safetensors")),
        found(files(tmp_path / "a.safetensors")),
    )
    assert by_file.path == by_path.path == tmp_path / "a.safetensors"
    assert by_file.sha256 == by_path.sha256 != found(files(tmp_path)).sha256


@pytest.mark.parametrize(
    ("source", "more", "says"),
    [
        ("./nowhere", {}, "do not exist"),
        ("somebody/net", {}, "needs a `revision`"),
        (".", {"file": "gone.safetensors"}, "cannot be read"),
    ],
)
def test_what_is_not_here_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, source: str, more: Any, says: str
) -> None:
    monkeypatch.chdir(net(tmp_path))
    with pytest.raises(ControlNetUnavailable, match=says):
        found(files(source, **more))


def test_a_name_that_the_catalogue_has_lost_is_said() -> None:
    with pytest.raises(ControlNetUnavailable, match="not in this worker's catalogue"):
        found(ControlNetFiles([]))


def test_canny_finds_the_edge_of_what_is_drawn() -> None:
    image = Image.new("RGB", (64, 64), "black")
    image.paste((200, 200, 200), (32, 0, 64, 64))
    drawn = edges(image, 100, 200)
    assert (drawn.size, drawn.mode) == (image.size, "RGB")
    columns = {x for x in range(64) for y in range(64) if drawn.getpixel((x, y)) != (0, 0, 0)}
    assert columns
    assert columns <= {31, 32}
    faint = Image.new("RGB", (64, 64), "black")
    faint.paste((20, 20, 20), (32, 0, 64, 64))
    assert edges(faint, 100, 200).getextrema() == ((0, 0),) * 3
    assert edges(faint, 5, 10).getextrema() == ((0, 255),) * 3
