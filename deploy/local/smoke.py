"""`make smoke`: a whole stack in a throw-away home makes two pictures through the HTTP API."""

import shutil
import tempfile
import threading
from pathlib import Path

from PIL import Image, ImageChops

from deploy.local.errors import StackError, StopRequestedError
from deploy.local.stack import LocalStack
from deploy.local.terminal import Terminal
from shared.images.receipts import read_receipt

PROMPT = "green mountains at noon, the sun, white flowers, a lake"
SEED = 7
CHANGED_PROMPT = "green mountains at night, the moon, white flowers, a lake"
STRENGTH = 0.6
REFERENCE = Path(__file__).resolve().parents[1] / "demo_model" / "first-picture.png"
"""The picture in the README: this prompt and seed on the demo model."""
TOLERANCE = 8
"""Largest difference of a channel, of 255, that another processor's arithmetic may make."""


def smoke(terminal: Terminal, stop: threading.Event) -> None:
    """Returns when both pictures are saved and everything is stopped.

    Raises:
        StackError: what failed; the home with its logs is kept and named.
        StopRequestedError: the user wants to stop.
    """
    pictures = Path(tempfile.mkdtemp(prefix="darkroom-smoke-pictures-"))
    home = Path(tempfile.mkdtemp(prefix="darkroom-smoke-home-"))
    try:
        _make_pictures(home, pictures, terminal, stop)
    except StopRequestedError:
        shutil.rmtree(home)
        raise
    except StackError:
        terminal.fact("logs", home / "logs")
        raise
    shutil.rmtree(home)
    terminal.say(f"Both pictures are in {pictures}", "bold")


def compare(picture: Path, reference: Path) -> str:
    """Says how a picture of the same seed and settings compares with the reference.

    Raises:
        StackError: it differs by more than another processor explains.
    """
    with Image.open(picture) as made, Image.open(reference) as wanted:
        receipts = [read_receipt(made), read_receipt(wanted)]
        hashes = [receipt["model"]["content_hash"] for receipt in receipts if receipt]
        if len(hashes) != 2 or hashes[0] != hashes[1]:
            return "Made by another model than the README's picture; not compared"
        pixels, wanted_pixels = made.convert("RGB"), wanted.convert("RGB")
        if pixels.size != wanted_pixels.size:
            raise StackError("the picture has another size than the README's")
        extremes = ImageChops.difference(pixels, wanted_pixels).getextrema()
    largest = max(int(high) for _, high in extremes)  # type: ignore[misc]  # RGB: a pair a channel
    if largest > TOLERANCE:
        raise StackError(f"the picture differs from the README's by up to {largest} of 255")
    if largest == 0:
        return "The same picture as the README's, pixel for pixel"
    return f"The README's picture, with channels differing by at most {largest} of 255"


def _make_pictures(home: Path, pictures: Path, terminal: Terminal, stop: threading.Event) -> None:
    stack = LocalStack(home, port=None, terminal=terminal, stop=stop)
    try:
        stack.start()
        first = pictures / "txt2img.png"
        with terminal.step("txt2img", first):
            stack.generate({"prompt": PROMPT, "seed": SEED}, first)
        terminal.say(compare(first, REFERENCE))
        second = pictures / "img2img.png"
        with terminal.step("img2img", second):
            job = {"prompt": CHANGED_PROMPT, "seed": 2, "strength": STRENGTH}
            stack.generate({**job, "init_image": stack.upload(first)}, second)
    finally:
        with terminal.step("stopped"):
            stack.close()
