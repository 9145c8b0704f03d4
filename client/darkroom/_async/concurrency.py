"""The few things that asynchronous and blocking code do differently; each side has its own."""

import asyncio
from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar

import httpx2

P = ParamSpec("P")
T = TypeVar("T")


async def sleep(seconds: float) -> None:
    """Do nothing for a while."""
    await asyncio.sleep(seconds)


async def in_thread(function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Call a function that reads or writes files, without holding up the event loop."""
    return await asyncio.to_thread(function, *args, **kwargs)


def read_now(image: Any, *, thumbnail: bool = False) -> bytes | None:
    """The file for a notebook, which does not await: from object storage; None if that fails."""
    try:
        answer = httpx2.get(image.thumbnail_url if thumbnail else image.url, timeout=30)
    except (httpx2.HTTPError, httpx2.InvalidURL):
        return None
    return answer.content if answer.is_success else None
