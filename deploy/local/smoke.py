"""`make smoke`: a whole stack in a throw-away home makes two images through the HTTP API."""

import shutil
import tempfile
import threading
from pathlib import Path

from PIL import Image, ImageChops

from deploy.local.host import StackError, StopRequestedError
from deploy.local.stack import LocalStack, Terminal
from shared.images.receipts import read_receipt

PROMPT = "green mountains at noon, the sun, white flowers, a lake"
SEED = 13
CHANGED_PROMPT = "green mountains at night, the moon, white flowers, a lake"
STRENGTH = 0.7
REFERENCE = Path(__file__).resolve().parents[1] / "demo_model" / "first-image.png"
"""The image in the README: this prompt and seed on the demo model."""
TOLERANCE = 8
"""Largest difference of a channel, of 255, that another processor's arithmetic may make."""


def smoke(terminal: Terminal, stop: threading.Event) -> None:
    """Returns when both images are saved and everything is stopped.

    Raises:
        StackError: what failed; the home with its logs is kept and named.
        StopRequestedError: the user wants to stop.
    """
    images = Path(tempfile.mkdtemp(prefix="darkroom-smoke-images-"))
    home = Path(tempfile.mkdtemp(prefix="darkroom-smoke-home-"))
    try:
        _make_images(home, images, terminal, stop)
    except StopRequestedError:
        shutil.rmtree(home)
        raise
    except StackError:
        terminal.fact("logs", home / "logs")
        raise
    shutil.rmtree(home)
    terminal.say(f"Both images are in {images}", "bold")


def compare(image: Path, reference: Path) -> str:
    """Says how an image of the same seed and settings compares with the reference.

    Raises:
        StackError: it differs by more than another processor explains.
    """
    with Image.open(image) as actual, Image.open(reference) as expected:
        receipts = [read_receipt(actual), read_receipt(expected)]
        hashes = [receipt["model"]["content_hash"] for receipt in receipts if receipt]
        if len(hashes) != 2 or hashes[0] != hashes[1]:
            return "Made by another model than the README's image; not compared"
        pixels, expected_pixels = actual.convert("RGB"), expected.convert("RGB")
        if pixels.size != expected_pixels.size:
            raise StackError("the image has another size than the README's")
        extremes = ImageChops.difference(pixels, expected_pixels).getextrema()
    largest = max(int(high) for _, high in extremes)  # type: ignore[misc]  # RGB: a pair a channel
    if largest > TOLERANCE:
        raise StackError(f"the image differs from the README's by up to {largest} of 255")
    if largest == 0:
        return "The same image as the README's, pixel for pixel"
    return f"The README's image, with channels differing by at most {largest} of 255"


def _make_images(home: Path, images: Path, terminal: Terminal, stop: threading.Event) -> None:
    stack = LocalStack(home, port=None, terminal=terminal, stop=stop)
    try:
        stack.start()
        first = images / "txt2img.png"
        with terminal.step("txt2img", first):
            stack.generate({"prompt": PROMPT, "seed": SEED}, first)
        terminal.say(compare(first, REFERENCE))
        second = images / "img2img.png"
        with terminal.step("img2img", second):
            job = {"prompt": CHANGED_PROMPT, "seed": 2, "strength": STRENGTH}
            stack.generate({**job, "init_image": stack.upload(first)}, second)
    finally:
        with terminal.step("stopped"):
            stack.close()
