"""What `make smoke` says of its image beside the README's."""

from pathlib import Path

import pytest
from PIL import Image

from deploy.local.host import StackError
from deploy.local.smoke import REFERENCE, TOLERANCE, compare
from shared.images.receipts import png_chunks, read_receipt


@pytest.fixture
def reference() -> Image.Image:
    with Image.open(REFERENCE) as image:
        image.load()
        return image


def save_changed(image: Image.Image, path: Path, by: int) -> Path:
    receipt = read_receipt(image)
    assert receipt is not None
    changed = image.convert("RGB")
    red, green, blue = changed.getpixel((3, 3))  # type: ignore[misc]
    changed.putpixel((3, 3), (red - by if red >= by else red + by, green, blue))
    changed.save(path, pnginfo=png_chunks(receipt))
    return path


def test_the_same_image_is_said_to_be_the_same() -> None:
    assert "pixel for pixel" in compare(REFERENCE, REFERENCE)


def test_another_processors_rounding_is_told(reference: Image.Image, tmp_path: Path) -> None:
    made = save_changed(reference, tmp_path / "made.png", TOLERANCE)
    assert f"at most {TOLERANCE} of 255" in compare(made, REFERENCE)


def test_a_wrong_image_fails(reference: Image.Image, tmp_path: Path) -> None:
    made = save_changed(reference, tmp_path / "made.png", TOLERANCE + 1)
    with pytest.raises(StackError, match=f"up to {TOLERANCE + 1} of 255"):
        compare(made, REFERENCE)


def test_an_image_of_another_model_is_not_compared(tmp_path: Path) -> None:
    Image.new("RGB", (128, 128)).save(tmp_path / "made.png")
    assert "not compared" in compare(tmp_path / "made.png", REFERENCE)
