"""`make smoke`: a whole stack in a throw-away home makes two pictures through the HTTP API."""

import shutil
import tempfile
import threading
from pathlib import Path

from deploy.local.errors import StackError, StopRequestedError
from deploy.local.stack import LocalStack
from deploy.local.terminal import Terminal

PROMPT = "a lake below snowy mountains at sunset"
CHANGED_PROMPT = "a lake below snowy mountains at night"
STRENGTH = 0.6


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


def _make_pictures(home: Path, pictures: Path, terminal: Terminal, stop: threading.Event) -> None:
    stack = LocalStack(home, port=None, terminal=terminal, stop=stop)
    try:
        stack.start()
        first = pictures / "txt2img.png"
        with terminal.step("txt2img", first):
            stack.generate({"prompt": PROMPT, "seed": 1}, first)
        second = pictures / "img2img.png"
        with terminal.step("img2img", second):
            job = {"prompt": CHANGED_PROMPT, "seed": 2, "strength": STRENGTH}
            stack.generate({**job, "init_image": stack.upload(first)}, second)
    finally:
        with terminal.step("stopped"):
            stack.close()
