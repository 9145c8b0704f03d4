"""The two things that asynchronous and blocking code do differently; each side has its own."""

import asyncio
from collections.abc import Callable
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")


async def sleep(seconds: float) -> None:
    """Do nothing for a while."""
    await asyncio.sleep(seconds)


async def in_thread(function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Call a function that reads or writes files, without holding up the event loop."""
    return await asyncio.to_thread(function, *args, **kwargs)
