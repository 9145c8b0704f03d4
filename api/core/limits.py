"""ASGI middleware that bounds what a request's body may cost: bytes, time, and memory at once."""

import asyncio
import time
from collections.abc import Mapping

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from api.core.errors import Problem
from api.core.fairness import FairSemaphore, acting_key

_BYTES_PER_SECOND = 32 * 1024
"""Slower than this, after the grace, is not a slow line but a client that holds on to us."""

_LARGE = 64 * 1024

_LARGE_AT_ONCE = 4
"""Larger bodies that a process handles at once, from their first byte to their answer. A JSON body
of 16 MB takes three times that until its image is decoded, and an image of 4096 × 4096 50 MB
until it is stored; four of them stay within 200 MB."""

_LARGE_PER_KEY = 2
_WAIT_SECONDS = 30.0

RELEASE = "darkroom.release_body"
"""Where a request's scope has what lets the next large body in before its own answer."""


class BodyLimits:
    """Refuses a body by its length, declared or counted while it streams, before any parsing;
    cuts it when it comes too slowly; and lets only a few large ones in at a time, in turn between
    keys.

    Bodies are read after authentication, so a stranger cannot take the place of a large one.
    """

    def __init__(
        self, app: ASGIApp, *, default: int, by_path: Mapping[str, int], grace: float
    ) -> None:
        """Limits in bytes; `grace` in seconds, before slowness counts."""
        self._app = app
        self._default = default
        self._by_path = dict(by_path)
        self._grace = grace
        self._semaphore = FairSemaphore("bodies", _LARGE_AT_ONCE, _LARGE_PER_KEY)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        limit = self._by_path.get(scope["path"].rstrip("/"), self._default)
        body = _Body(receive, Headers(scope=scope), limit, self._grace, self._semaphore)
        scope[RELEASE] = body.give_back
        try:
            await self._app(scope, body.receive, send)
        finally:
            body.give_back()


class _Body:
    """One request's body while it is read."""

    def __init__(
        self, receive: Receive, headers: Headers, limit: int, grace: float, turns: FairSemaphore
    ) -> None:
        declared = headers.get("content-length", "")
        self._declared = int(declared[:20]) if declared.isdecimal() else 0
        self._receive = receive
        self._limit = limit
        self._grace = grace
        self._semaphore = turns
        self._key: str | None = None
        self._started = 0.0
        self._seen = 0
        self._complete = False

    async def receive(self) -> Message:
        """The next part.

        Raises:
            Problem: 413, 408 or 503.
        """
        if self._complete:
            return await self._receive()  # What comes now is the client's going away.
        if not self._started:
            self._started = time.monotonic()
        await self._admit(self._declared)
        allowed = self._grace + self._seen / _BYTES_PER_SECOND
        left = self._started + allowed - time.monotonic()
        try:
            message = await asyncio.wait_for(self._receive(), max(0.0, left))
        except TimeoutError:
            raise Problem("body_too_slow") from None
        if message["type"] != "http.request":
            return message
        self._seen += len(message.get("body", b""))
        self._complete = not message.get("more_body", False)
        await self._admit(self._seen)
        return message

    async def _admit(self, size: int) -> None:
        if size > self._limit:
            raise Problem("body_too_large", f"A body may have {self._limit} bytes at most here.")
        if size <= _LARGE or self._key is not None:
            return
        began = time.monotonic()
        key = acting_key.get()
        try:
            await asyncio.wait_for(self._semaphore.acquire(key), _WAIT_SECONDS)
        except TimeoutError:
            raise Problem("busy") from None
        self._key = key
        self._started += time.monotonic() - began  # the wait was ours, not the client's

    def give_back(self) -> None:
        """Let the next large body in."""
        if self._key is not None:
            self._semaphore.release(self._key)
            self._key = None
