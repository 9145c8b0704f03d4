"""CPU time of encoding a PNG, against Pillow's default settings."""

import io
import time
from collections.abc import Callable, Iterator

import numpy as np
from PIL import Image, ImageFilter

from tests.bench.row import Row, make_row
from worker.jobs.commit import encode_image

_SIDE = 512
_REPEATS = 9

RECEIPT = {
    "receipt_version": 1,
    "prompt": "an image",
    "negative_prompt": None,
    "seed": 1,
    "width": _SIDE,
    "height": _SIDE,
    "steps": 25,
    "guidance_scale": 7.5,
    "strength": None,
    "scheduler": {"name": "ddim"},
    "model": {"name": "bench", "content_hash": "0" * 64},
    "software": {"darkroom": "bench"},
}


def rows() -> Iterator[Row]:
    """Time and size on a photograph-like image: smooth shapes under fine noise."""
    image = photograph()
    sizes = {}

    def default() -> None:
        buffer = io.BytesIO()
        image.save(buffer, "PNG")
        sizes["default"] = buffer.tell()

    def ours() -> None:
        sizes["ours"] = len(encode_image(image, "png", RECEIPT).body)

    time_ratios = [_cpu_seconds(ours) / _cpu_seconds(default) for _ in range(_REPEATS)]
    yield make_row(
        "PNG encode CPU, thumbnail included",
        time_ratios,
        unit="of baseline",
        goal=0.35,
        better="lower",
        baseline=f"Pillow's default, {_SIDE}x{_SIDE}",
    )
    yield make_row(
        "PNG size",
        [sizes["ours"] / sizes["default"]],
        unit="of baseline",
        goal=1.01,
        better="lower",
        baseline="Pillow's default, without the receipt's chunks",
    )


def photograph() -> Image.Image:
    """A reproducible RGB image with the entropy of a photograph."""
    generator = np.random.default_rng(7)
    coarse = generator.integers(0, 255, (16, 16, 3), dtype=np.uint8)
    smooth = Image.fromarray(coarse).resize((_SIDE, _SIDE), Image.Resampling.BICUBIC)
    smooth = smooth.filter(ImageFilter.GaussianBlur(2))
    noise = generator.normal(0, 2, (_SIDE, _SIDE, 3))
    pixels = np.clip(np.asarray(smooth, dtype=np.float64) + noise, 0, 255)
    return Image.fromarray(pixels.astype(np.uint8))


def _cpu_seconds(action: Callable[[], None]) -> float:
    started = time.process_time()
    action()
    return time.process_time() - started
