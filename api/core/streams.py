"""Answers that stay open: how many a key may hold, how they are opened, their end with the key."""

import asyncio
import re
import time
from collections.abc import AsyncGenerator
from contextlib import ExitStack, aclosing
from typing import Annotated

from fastapi import Depends, Header, Request
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from api.context import Resources
from api.core.auth import count_request, find_live_key, identify, quotas_of
from api.core.errors import Problem, answer, problems
from api.core.fairness import PLACE, FairSemaphore
from api.core.middleware import ROUTE
from api.core.principal import Principal
from shared.core.tenants import ApiKey

MAX_WAIT = 60
_WAIT = re.compile(r"\s*wait\s*=\s*\"?(\d{1,6})\"?\s*", re.IGNORECASE)
_STREAM = "/v1/jobs/{job_id}/events"
_WAITS = ("/v1/jobs", "/v1/jobs/{job_id}", "/v1/images/{image_id}/reproduce")

_PATHS = {
    route: re.compile(".*" + re.sub(r"{\w+}", "[^/]+", route)) for route in (_STREAM, *_WAITS)
}

_OPENING_SECONDS = 30.0
_OPENING = "darkroom.opening"


def _parse_wait(headers: Headers) -> int | None:
    for preference in ",".join(headers.getlist("prefer")).split(","):
        if match := _WAIT.fullmatch(preference.partition(";")[0]):
            return min(int(match[1]), MAX_WAIT)
    return None


@problems("too_many_waits")
async def _read_wait(
    request: Request,
    prefer: Annotated[  # noqa: ARG001 - documents the header, which may come several times
        str | None, Header(description="`wait=n`: hold the answer until done, n ≤ 60 seconds.")
    ] = None,
) -> int | None:
    return _parse_wait(request.headers)


Wait = Annotated[int | None, Depends(_read_wait)]
"""The seconds of `Prefer: wait=n` (RFC 7240), at most 60; None without one."""


class _Opening:
    """A request's turn to be opened."""

    def __init__(self, semaphore: FairSemaphore, key_id: str) -> None:
        self._semaphore = semaphore
        self._key_id = key_id
        self._is_held = False
        self.waited = 0.0
        """Seconds until it was its turn."""

    async def begin(self) -> None:
        """Wait for the turn.

        Raises:
            TimeoutError: it has not come.
        """
        began = time.monotonic()
        async with asyncio.timeout(_OPENING_SECONDS):
            await self._semaphore.acquire(self._key_id)
        self._is_held = True
        self.waited = time.monotonic() - began

    def end(self) -> None:
        """From here on it costs nothing: let the next one in. May be repeated."""
        if self._is_held:
            self._is_held = False
            self._semaphore.release(self._key_id)


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
        if scope["type"] != "http" or (route := _stays_open(scope)) is None:
            await self._app(scope, receive, send)
            return
        resources: Resources = scope["app"].state.resources
        answers = resources.streams if route == _STREAM else resources.waits
        with ExitStack() as stack:
            request, key = Request(scope), None
            try:
                key = await identify(resources, request)
                stack.enter_context(answers.hold(key.id, scope))
                opening = _Opening(resources.semaphores.openings, key.id)
                await opening.begin()
            except (Problem, TimeoutError) as error:
                late = Problem("too_many_at_once", headers={"Retry-After": "1"})
                problem = error if isinstance(error, Problem) else late
                if key is not None:
                    problem = await _counted(resources, request, key, problem)
                scope[ROUTE] = route
                request_id = str(scope.get("darkroom.request_id", ""))
                await answer(problem, scope["path"], request_id)(scope, receive, send)
                return
            stack.callback(opening.end)
            scope[PLACE], scope[_OPENING] = answers, opening

            async def send_opened(message: Message) -> None:
                opening.end()
                await send(message)

            await self._app(scope, receive, send_opened)


async def _counted(
    resources: Resources, request: Request, key: ApiKey, refusal: Problem
) -> Problem:
    """Count a request that nobody else will count: refusals, too, use up its key's rate."""
    try:
        await count_request(resources, request, key.id, quotas_of(key))
    except Problem as limited:
        return limited
    return refusal


def _stays_open(scope: Scope) -> str | None:
    """The route of a stream of events or of a wait; None for all others, and without a key."""
    headers = Headers(scope=scope)
    if "authorization" not in headers:
        return None
    path = scope["path"]
    if scope["method"] == "GET" and _PATHS[_STREAM].fullmatch(path):
        return _STREAM
    if "prefer" in headers and _parse_wait(headers):
        return next((route for route in _WAITS if _PATHS[route].fullmatch(path)), None)
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
        return True  # Postgres is unavailable: who was let in may read on.
