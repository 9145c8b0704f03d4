"""The few things that asynchronous and blocking code do differently; each side has its own."""

import time
from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar

from darkroom.errors import DarkroomError

P = ParamSpec("P")
T = TypeVar("T")


def sleep(seconds: float) -> None:
    """Do nothing for a while."""
    time.sleep(seconds)


def in_thread(function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Call a function that reads or writes files: right here, since nothing else waits."""
    return function(*args, **kwargs)


def read_now(image: Any, *, thumbnail: bool = False) -> bytes | None:
    """The file for a notebook; None if that fails."""
    try:
        data: bytes = image.thumbnail() if thumbnail else image.bytes()
    except DarkroomError:
        return None
    return data
