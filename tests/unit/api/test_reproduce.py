"""Comparing two makings of an image: pixels, and what the receipts say."""

import copy
from typing import Any

import pytest
from PIL import Image

from api.core.errors import Problem
from api.jobs.reproduce import _options, compare_pixels, explain, loras_of_receipt
from shared.core.model_catalog import ModelCatalog, ModelSpec
from tests.images import encode
from tests.unit.images.hostile import make_image

RECEIPT: dict[str, Any] = {
    "model": {"name": "demo", "content_hash": "a" * 64},
    "device": "cpu",
    "dtype": "float32",
    "batch_size": 1,
    "cpu_threads": 2,
    "speed": {"channels_last": False, "compile": "off"},
    "notes": [],
    "software": {"torch": "2.13", "diffusers": "0.42", "cuda": None, "darkroom": "1"},
}


def shifted(levels: int) -> bytes:
    image = make_image()
    x, y, step = 10, 10, levels
    red, green, blue = image.getpixel((x, y))  # type: ignore[misc]
    image.putpixel((x, y), (red - step if red >= step else red + step, green, blue))
    return encode(image, "PNG")


@pytest.mark.parametrize(
    ("levels", "verdict"),
    [(0, "identical"), (1, "equivalent"), (8, "equivalent"), (9, "different"), (60, "different")],
)
def test_one_pixel_decides(levels: int, verdict: str) -> None:
    result = compare_pixels(encode(make_image(), "PNG"), shifted(levels))
    assert (result.verdict, result.max_pixel_difference) == (verdict, levels)


def test_the_file_format_does_not_matter() -> None:
    lossless = encode(make_image(), "WEBP", lossless=True, exact=True)
    assert compare_pixels(encode(make_image(), "PNG"), lossless).verdict == "identical"


def test_other_sizes_are_different() -> None:
    small = encode(Image.new("RGB", (64, 64)), "PNG")
    assert compare_pixels(encode(make_image(), "PNG"), small).verdict == "different"


@pytest.mark.parametrize(
    ("path", "value", "word"),
    [
        (("model", "content_hash"), "b" * 64, "checkpoint"),
        (("device",), "NVIDIA H200", "device"),
        (("batch_size",), 8, "batch size"),
        (("speed", "channels_last"), True, "channels_last was false and is true"),
        (("speed", "compile"), "inductor", "compile was off and is inductor"),
        (("software", "torch"), "2.14", "torch"),
    ],
)
def test_the_reason_names_what_differs(path: tuple[str, ...], value: Any, word: str) -> None:
    now = copy.deepcopy(RECEIPT)
    place = now
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = value
    assert word in explain(RECEIPT, now, "different").lower()
    assert "although" in explain(RECEIPT, now, "identical")


def test_receipts_from_before_speed_settings_were_recorded_are_not_said_to_differ_in_them() -> None:
    old = {key: value for key, value in RECEIPT.items() if key != "speed"}
    assert "hardware" in explain(old, RECEIPT, "different")


def test_equal_receipts_say_so() -> None:
    assert "equal" in explain(RECEIPT, RECEIPT, "identical")
    assert "hardware" in explain(RECEIPT, RECEIPT, "different")


def test_pixels_are_resampled_without_a_lora_that_has_gone_and_name_it() -> None:
    catalog = ModelCatalog(model=(ModelSpec(name="m", source="m"),))
    receipt = {"loras": [{"name": "gone", "sha256": "a" * 64, "scale": 1.0}]}
    assert loras_of_receipt(catalog, receipt, {}, needs_all=False) == receipt["loras"]
    with pytest.raises(Problem, match="gone"):
        loras_of_receipt(catalog, receipt, {}, needs_all=True)


def test_the_number_of_cpu_threads_is_part_of_what_is_reproduced() -> None:
    assert _options(RECEIPT, {}) == {"cpu_threads": 2}
    assert _options({**RECEIPT, "cpu_threads": None}, {}) == {}
