"""Receipts in images: written and read back in each format, and nonsense ignored."""

import io
from typing import Any

import numpy as np
import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from shared.images.receipts import RECEIPT_VERSION, exif_block, read_receipt, upgrade
from tests import earlier_version
from worker.jobs.commit import encode_image


@pytest.fixture
def receipt() -> dict[str, Any]:
    return {
        "receipt_version": RECEIPT_VERSION,
        "prompt": "dämmerung, 夜, 🌙",
        "negative_prompt": "houses",
        "seed": 9007199254740991,
        "width": 64,
        "height": 48,
        "steps": 20,
        "guidance_scale": 5.0,
        "strength": 0.5,
        "scheduler": {"name": "ddim"},
        "model": {"name": "demo", "content_hash": "ab" * 32},
        "software": {"darkroom": "0.1.0"},
    }


@pytest.fixture
def image() -> Image.Image:
    pixels = np.random.default_rng(0).integers(0, 255, (48, 64, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


@pytest.mark.parametrize("output_format", ["png", "webp", "jpeg"])
def test_a_receipt_is_read_back(
    receipt: dict[str, Any], image: Image.Image, output_format: str
) -> None:
    encoded = encode_image(image, output_format, receipt)
    opened = Image.open(io.BytesIO(encoded.body))
    assert encoded.content_type == f"image/{output_format}"
    assert read_receipt(opened) == receipt


@pytest.mark.parametrize("output_format", ["png", "webp", "jpeg"])
def test_the_longest_prompts_fit(
    receipt: dict[str, Any], image: Image.Image, output_format: str
) -> None:
    longest = {**receipt, "prompt": "🌙" * 4000, "negative_prompt": "🏠" * 4000}
    encoded = encode_image(image, output_format, longest)
    assert read_receipt(Image.open(io.BytesIO(encoded.body))) == longest


@pytest.mark.parametrize("output_format", ["png", "webp"])
def test_lossless_formats_keep_every_pixel(
    receipt: dict[str, Any], image: Image.Image, output_format: str
) -> None:
    encoded = encode_image(image, output_format, receipt)
    opened = Image.open(io.BytesIO(encoded.body)).convert("RGB")
    assert np.array_equal(np.asarray(opened), np.asarray(image))


def test_other_tools_see_the_settings(receipt: dict[str, Any], image: Image.Image) -> None:
    text = Image.open(io.BytesIO(encode_image(image, "png", receipt).body)).info["parameters"]
    assert text.splitlines()[0] == receipt["prompt"]
    assert text.splitlines()[1] == "Negative prompt: houses"
    assert "Steps: 20, Sampler: ddim, CFG scale: 5.0, Seed: 9007199254740991" in text
    assert "Denoising strength: 0.5" in text


@pytest.mark.parametrize(
    "text",
    [
        "",
        "nonsense",
        "[]",
        '{"receipt_version": 999}',
        '{"a": 1}',
        "[" * 30_000,
        "[" * 300_000,
        '{"receipt_version": 1, "notes": ' + "[" * 600 + "]" * 600 + "}",
        '{"receipt_version": 1, "guidance_scale": NaN}',
        '{"receipt_version": 1, "guidance_scale": 1e999}',
        '{"receipt_version": 1, "seed": 1' + "0" * 10_000 + "}",
        r'{"receipt_version": 1, "prompt": "\ud800"}',
        r'{"receipt_version": 1, "\ud800": 1}',
        r'{"receipt_version": 1, "init_image_sha256": "\u0000"}',
    ],
)
def test_what_is_no_receipt_is_none(image: Image.Image, text: str) -> None:
    chunks = PngInfo()
    chunks.add_itxt("darkroom", text)
    buffer = io.BytesIO()
    image.save(buffer, "PNG", pnginfo=chunks)
    assert read_receipt(Image.open(buffer)) is None


@pytest.mark.filterwarnings("ignore:Corrupt EXIF", "ignore:Tag data larger")
@pytest.mark.parametrize("length", range(0, 40, 3))
def test_exif_that_is_cut_off_is_no_receipt(
    receipt: dict[str, Any], image: Image.Image, length: int
) -> None:
    """And the image is still one."""
    written = io.BytesIO()
    image.save(written, "WEBP", exif=exif_block(receipt).tobytes()[:length])
    with Image.open(written) as again:
        assert read_receipt(again) is None


@pytest.mark.parametrize("output_format", ["png", "webp", "jpeg"])
def test_a_receipt_of_version_1_is_read_and_its_rows_are_the_batch_size(
    receipt: dict[str, Any], image: Image.Image, output_format: str
) -> None:
    old = receipt | {"receipt_version": 1, "rows": 4}
    encoded = encode_image(image, output_format, old)
    found = read_receipt(Image.open(io.BytesIO(encoded.body)))
    assert found == old
    assert upgrade(old) == receipt | {"receipt_version": 2, "batch_size": 4}
    assert upgrade(receipt) == receipt


def test_an_image_of_an_earlier_version_carries_a_receipt_that_is_understood() -> None:
    with Image.open(earlier_version.IMAGE) as opened:
        found = read_receipt(opened)
    assert found is not None
    assert found["receipt_version"] == 1
    assert upgrade(found)["batch_size"] == found["rows"]
