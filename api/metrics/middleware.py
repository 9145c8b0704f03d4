"""ASGI middleware that counts every request and makes it a span of its client's trace."""

import time
from typing import Any

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from api.metrics.families import REQUEST_SECONDS, REQUESTS
from shared import telemetry

_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
_UNMATCHED = "unmatched"
_FAILED = 500


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
    if not telemetry.is_tracing():
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
    return str(getattr(scope.get("route"), "path", _UNMATCHED))
