"""ASGI middleware around every request: id, security headers, last resort, metrics, traces."""

import asyncio
import contextlib
import errno
import re
import time
from typing import Any

import structlog
from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from api.core.errors import Problem, answer
from api.core.metrics import REQUEST_SECONDS, REQUESTS
from shared.core import telemetry
from shared.core.ids import new_id
from shared.core.logging import get_logger

_log = get_logger(__name__)

EXTRA_HEADERS = "darkroom.headers"
"""Where a request's scope has a dict for headers that its answer gets, whatever it is."""

ROUTE = "darkroom.route"
"""The route's template in the scope of a request that is refused before it is routed."""

_REQUEST_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
_CSP = "default-src 'none'; frame-ancestors 'none'"


class HeadAsGet:
    """Answers HEAD as GET would be answered, without the body (RFC 9110, 9.3.2); counted as GET.

    What GET would go on to send, a stream of events among it, is given up with its first byte.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["method"] != "HEAD":
            await self._app(scope, receive, send)
            return
        answered = asyncio.Event()

        async def send_head(message: Message) -> None:
            if message["type"] == "http.response.start":
                await send(message)
                await send({"type": "http.response.body", "body": b""})
                answered.set()

        getting = asyncio.ensure_future(self._app(_as_get(scope), receive, send_head))
        getting.add_done_callback(lambda _: answered.set())
        try:
            await answered.wait()
        finally:
            getting.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await getting


def _as_get(scope: Scope) -> Scope:
    """Ranges are of GET alone (RFC 9110, 14.2)."""
    headers = [(name, value) for name, value in scope["headers"] if name != b"range"]
    return {**scope, "method": "GET", "headers": headers}


class RequestEnvelope:
    """Gives each request an id and each answer its security headers; turns a bug into a 500."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        offered = Headers(scope=scope).get("x-request-id", "")
        request_id = offered if _REQUEST_ID.fullmatch(offered) else new_id().hex
        scope["darkroom.request_id"] = request_id
        extra: dict[str, str] = {}
        scope[EXTRA_HEADERS] = extra
        status = 0
        started = time.perf_counter()

        async def send_with_headers(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                headers = MutableHeaders(scope=message)
                headers["X-Request-Id"] = request_id
                headers["X-Content-Type-Options"] = "nosniff"
                headers["Referrer-Policy"] = "no-referrer"
                headers.setdefault("Content-Security-Policy", _CSP)
                headers.setdefault("Cache-Control", "no-store")
                headers.update(extra)
            await send(message)

        structlog.contextvars.clear_contextvars()
        structlog.contextvars.bind_contextvars(request_id=request_id)
        try:
            await self._app(scope, receive, send_with_headers)
        except Exception as error:
            _log.exception("request_failed", method=scope["method"], path=scope["path"])
            if status:
                raise  # The answer is already on its way; the server cuts the connection.
            full = isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)
            problem = Problem("disk_full" if full else "internal_error")
            await answer(problem, scope["path"], request_id)(scope, receive, send_with_headers)
        finally:
            _log.debug(
                "request",
                method=scope["method"],
                path=scope["path"],
                status=status,
                ms=round((time.perf_counter() - started) * 1000, 1),
            )


_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
_UNMATCHED = "unmatched"
_FAILED = 500

_UNTRACED = frozenset({"/metrics", "/healthz", "/readyz", "/readyz/database"})
"""Asked for every few seconds, by nobody who would look for the trace."""


class RequestObserver:
    """Counts, times and traces. Inside `RequestEnvelope`, which answers what is raised here."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        begun = time.perf_counter()
        status = 0

        async def watched(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                _count(scope, status, time.perf_counter() - begun)
            await send(message)

        with _span(scope) as span:
            try:
                await self._app(scope, receive, watched)
            except Exception:
                if not status:
                    status = _FAILED
                    _count(scope, status, time.perf_counter() - begun)
                raise
            finally:
                if telemetry.is_tracing():
                    _describe(span, scope, status)


def _count(scope: Scope, status: int, seconds: float) -> None:
    method, route = _method(scope), _route(scope)
    REQUESTS.labels(method, route, status).inc()
    if not any(name == b"prefer" for name, _ in scope["headers"]):
        REQUEST_SECONDS.labels(method, route).observe(seconds)


def _span(scope: Scope) -> Any:
    if not telemetry.is_tracing() or scope["path"] in _UNTRACED:
        return telemetry.NOTHING
    parent = next((value for name, value in scope["headers"] if name == b"traceparent"), None)
    return telemetry.span(
        _method(scope), "server", parent=parent.decode("latin-1") if parent else None
    )


def _describe(span: telemetry.Span, scope: Scope, status: int) -> None:
    """The route is known only after the request was routed."""
    method, route = _method(scope), _route(scope)
    span.rename(f"{method} {route}")
    span.set(
        {
            "http.request.method": method,
            "http.route": route,
            "http.response.status_code": status,
            "darkroom.request_id": str(scope.get("darkroom.request_id", "")),
        }
    )
    if status >= _FAILED:
        span.fail(f"answered {status}")


def _method(scope: Scope) -> str:
    method: str = scope["method"]
    return method if method in _METHODS else "other"


def _route(scope: Scope) -> str:
    return str(getattr(scope.get("route"), "path", scope.get(ROUTE, _UNMATCHED)))
