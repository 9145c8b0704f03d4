"""Images as files, for tests that send some."""

import base64
import io
from typing import Any

from PIL import Image


def encode(image: Image.Image, image_format: str = "PNG", **options: Any) -> bytes:
    """The file of an image."""
    file = io.BytesIO()
    image.save(file, image_format, **options)
    return file.getvalue()


def png(colour: str = "red", width: int = 64, height: int = 64) -> bytes:
    """The file of an image of one colour."""
    return encode(Image.new("RGB", (width, height), colour))


def mandelbrot(width: int = 96, height: int = 64) -> Image.Image:
    """An image in which there is something to see."""
    return Image.effect_mandelbrot((width, height), (-2, -1, 1, 1), 40).convert("RGB")


def data_url(content: bytes, kind: str = "png") -> str:
    """A file as a field of a job takes it."""
    return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"
