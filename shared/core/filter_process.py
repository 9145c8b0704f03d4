"""The process of the operator's filters: it can hang or crash, and is killed and restarted.

`shared.core.filters` starts it, with one socket. What a filter is stands here, so
that this process imports little else.
"""

import os
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

if TYPE_CHECKING:
    from multiprocessing.connection import Connection

    import numpy as np

    from shared.core.model_catalog import ModelSpec

Side = Literal["prompt", "image"]
"""What is looked at: prompts by the API, images by generate workers."""

BUILT_IN: Mapping[str, tuple[Side, str]] = {
    "word_list": ("prompt", "shared.core.word_list:WordList"),
    "safety_checker": ("image", "worker.engine.safety_checker:SafetyChecker"),
}
"""Filters that come with Darkroom: name -> (what it looks at, module:class)."""

_MAX_REASON = 300
"""Characters."""


class Verdict(NamedTuple):
    """What a filter says of a prompt or an image; None in its place allows it."""

    action: Literal["refuse", "mark"]
    reason: str
    """A sentence for whoever sent the prompt."""


@dataclass(frozen=True)
class Prompt:
    """What a job asks for."""

    text: str
    negative_text: str | None
    """What the images should not show."""
    model: str
    tenant: str
    """Its id."""


@dataclass(frozen=True)
class MadeImage:
    """An image before it is encoded and uploaded."""

    pixels: "np.ndarray[Any, Any]"
    """uint8, height × width × 3, RGB."""
    prompt: Prompt


@dataclass(frozen=True)
class Setup:
    """What filters are made with."""

    words: Path | None = None
    """The setting `filter_words`."""
    models: "Sequence[ModelSpec]" = ()
    """What this worker serves; none in the API."""
    device: str | None = None
    """The setting `device`."""


# A filter is a class that is called with a `Setup` and has one of these methods, or both:
#
#     check_prompt(prompt: Prompt) -> Verdict | tuple[str, str] | None
#     check_image(image: MadeImage) -> Verdict | tuple[str, str] | None
#
# One that has no method for the process's side is not made there.

Check = Callable[[Any], Verdict | None]


def load(side: Side, references: Sequence[tuple[str, str]], setup: Setup) -> dict[str, Check]:
    """The filters of one side, by name; `references` are (name, module:class)."""
    checks: dict[str, Check] = {}
    for name, reference in references:
        module, _, attribute = reference.partition(":")
        kind: Any = import_module(module)
        for part in attribute.split("."):
            kind = getattr(kind, part)
        if hasattr(kind, f"check_{side}"):
            checks[name] = getattr(kind(setup), f"check_{side}")
    return checks


def checked(verdict: object) -> Verdict | None:
    """What a filter has returned, if it is a verdict.

    Raises:
        TypeError: it is none.
    """
    if verdict is None:
        return None
    match verdict:
        case ("refuse" | "mark" as action, str(reason)):
            return Verdict(action, reason.replace("\0", "")[:_MAX_REASON])
    raise TypeError(f"{verdict!r} is not a verdict")


def serve(connection: "Connection") -> None:
    """Answer until the other end is closed: a message is (filter, prompt or image), an answer its
    verdict or the type of an exception."""
    side, references, setup = connection.recv()
    try:
        checks = load(side, references, setup)
    except Exception as error:
        traceback.print_exc()
        connection.send(f"{type(error).__name__}: {error}"[:_MAX_REASON])
        return
    connection.send(tuple(checks))
    while True:
        try:
            name, subject = connection.recv()
        except EOFError:
            return
        try:
            answer: object = checked(checks[name](subject))
        except Exception as error:
            # What it says may hold the prompt, which belongs in no log.
            traceback.print_tb(error.__traceback__)
            answer = type(error).__name__
        connection.send(answer)


def _leave_with(parent: int) -> None:
    """A filter that hangs does not notice that nobody waits for it any more."""
    while os.getppid() == parent:
        threading.Event().wait(1.0)
    os.killpg(0, signal.SIGKILL)  # with the processes that filters have started


def main() -> None:
    # Whoever started it ends it; a Ctrl-C or a draining worker still has images to be looked at.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    from multiprocessing.connection import Connection

    watch = threading.Thread(target=_leave_with, args=(int(sys.argv[2]),), daemon=True)
    watch.start()
    try:
        serve(Connection(int(sys.argv[1])))
    finally:
        os.killpg(0, signal.SIGKILL)
