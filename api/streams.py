"""Answers that stay open: how many a key may hold, and that they end with their key."""

from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing, asynccontextmanager

from api.auth import find_live_key
from api.deps import Resources
from api.principal import Principal
from api.problems import Problem

MAX_STREAMS_PER_KEY = 64
"""Per process; each holds a socket and, of a job, a connection to Redis."""


@asynccontextmanager
async def stream_slot(resources: Resources, principal: Principal) -> AsyncIterator[None]:
    """Count an open answer against its key for as long as it lasts.

    Raises:
        Problem: 429 `too_many_streams`.
    """
    if resources.streams[principal.key_id] >= MAX_STREAMS_PER_KEY:
        raise Problem("too_many_streams", headers={"Retry-After": "10"})
    resources.streams[principal.key_id] += 1
    try:
        yield
    finally:
        resources.streams[principal.key_id] -= 1


async def while_key_lives(
    resources: Resources, principal: Principal, pieces: AsyncGenerator[bytes, None]
) -> AsyncGenerator[bytes, None]:
    """The pieces of an answer, until its key is revoked or expires: nothing 5 s later."""
    async with aclosing(pieces):
        async for piece in pieces:
            if not await _may_go_on(resources, principal):
                return
            yield piece


async def _may_go_on(resources: Resources, principal: Principal) -> bool:
    try:
        return await find_live_key(resources, principal.key_id) is not None
    except Problem:
        return True  # Postgres is away: who was let in may read on.
