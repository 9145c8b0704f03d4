"""Answers that stay open: how many a key may hold, how they are opened, their end with the key."""

import asyncio
import random
import re
import time
from collections import Counter
from collections.abc import AsyncGenerator, Iterator
from contextlib import ExitStack, aclosing, contextmanager
from typing import Literal

from fastapi import Request
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from api.context import Resources
from api.core.auth import find_live_key, identify
from api.core.errors import Problem, answer
from api.core.fairness import FairGate
from api.core.principal import Principal

MAX_WAIT = 60


_WAIT = re.compile(r"\s*wait\s*=\s*\"?(\d{1,6})\"?\s*", re.IGNORECASE)


_STREAM_PATH = re.compile(r".*/v1/jobs/[^/]+/events")


_WAIT_PATH = re.compile(r".*/v1/(jobs(/[^/]+)?|images/[^/]+/reproduce)")


_OPENING_SECONDS = 30.0


_PLACE = "darkroom.place"


_OPENING = "darkroom.opening"


def parse_wait(request: Request) -> int | None:
    """The seconds of `Prefer: wait=n` (RFC 7240), at most 60; None without one."""
    return _parse_wait(request.headers)


def _parse_wait(headers: Headers) -> int | None:
    for preference in ",".join(headers.getlist("prefer")).split(","):
        if match := _WAIT.fullmatch(preference.partition(";")[0]):
            return min(int(match[1]), MAX_WAIT)
    return None


class OpenAnswers:
    """The answers of one kind that a process holds open, and whose they are.

    A key may hold `per_key`, and never more than there are places left: a few busy keys fill the
    process only in part, so that a new one finds room.
    """

    def __init__(
        self, refusal: Literal["too_many_streams", "too_many_waits"], per_key: int, at_most: int
    ) -> None:
        self._refusal = refusal
        self._per_key = per_key
        self._at_most = at_most
        self._held: Counter[str] = Counter()

    @contextmanager
    def hold(self, key_id: str, scope: Scope) -> Iterator[None]:
        """Count a request against its key for as long as it lasts, if `Openings` has not yet.

        Raises:
            Problem: 429, of the code that this was made with.
        """
        if scope.get(_PLACE) is self:
            yield
            return
        if self._held[key_id] >= min(self._per_key, self._at_most - self._held.total()):
            # Not all who are refused together are to come back together.
            raise Problem(self._refusal, headers={"Retry-After": str(random.randint(5, 15))})
        self._held[key_id] += 1
        try:
            yield
        finally:
            self._held[key_id] -= 1
            self._held += Counter()  # forgets keys that hold nothing


class _Opening:
    """A request's turn to be opened."""

    def __init__(self, gate: FairGate, key_id: str) -> None:
        self._gate = gate
        self._key_id = key_id
        self._has_turn = False
        self.waited = 0.0
        """Seconds until it was its turn."""

    async def begin(self) -> None:
        """Wait for the turn.

        Raises:
            TimeoutError: it has not come.
        """
        began = time.monotonic()
        async with asyncio.timeout(_OPENING_SECONDS):
            await self._gate.acquire(self._key_id)
        self._has_turn = True
        self.waited = time.monotonic() - began

    def end(self) -> None:
        """From here on it costs nothing: let the next one in. May be repeated."""
        if self._has_turn:
            self._has_turn = False
            self._gate.release(self._key_id)


def opened(request: Request) -> float:
    """Say that a request only waits from here on; the seconds that it has waited for its turn."""
    opening: _Opening | None = request.scope.get(_OPENING)
    if opening is None:
        return 0.0
    opening.end()
    return opening.waited


class Openings:
    """ASGI middleware that lets a few waits and streams at a time open, in turn between keys.

    Those beyond their key's limit are refused here, before they are routed or their body is read.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or (waits := _stays_open(scope)) is None:
            await self._app(scope, receive, send)
            return
        resources: Resources = scope["app"].state.resources
        answers = resources.waits if waits else resources.streams
        with ExitStack() as stack:
            try:
                key = await identify(resources, Request(scope))
                stack.enter_context(answers.hold(key.id, scope))
                opening = _Opening(resources.gates.openings, key.id)
                await opening.begin()
            except (Problem, TimeoutError) as error:
                late = Problem("too_many_at_once", headers={"Retry-After": "1"})
                problem = error if isinstance(error, Problem) else late
                request_id = str(scope.get("darkroom.request_id", ""))
                await answer(problem, scope["path"], request_id)(scope, receive, send)
                return
            stack.callback(opening.end)
            scope[_PLACE], scope[_OPENING] = answers, opening

            async def send_opened(message: Message) -> None:
                opening.end()
                await send(message)

            await self._app(scope, receive, send_opened)


def _stays_open(scope: Scope) -> bool | None:
    """True for a wait, False for a stream of events; None for all others, and without a key."""
    headers = Headers(scope=scope)
    if "authorization" not in headers:
        return None
    if scope["method"] == "GET" and _STREAM_PATH.fullmatch(scope["path"]):
        return False
    if "prefer" in headers and _WAIT_PATH.fullmatch(scope["path"]) and _parse_wait(headers):
        return True
    return None


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
