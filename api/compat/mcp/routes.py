"""HTTP of the MCP server: streamable HTTP without sessions, so that any API process may answer.

The SDK takes a second to import, so nothing of it is until a client comes.
"""

from functools import cache
from importlib.util import find_spec
from typing import Annotated, Any
from urllib.parse import urlsplit

from fastapi import APIRouter, Depends, Request, Response
from starlette.types import Message, Receive, Scope, Send

from api.context import Res
from api.core.auth import authenticate
from api.core.errors import Problem
from api.core.fairness import on_thread
from api.core.principal import Principal
from shared.core.settings import Settings

router = APIRouter(tags=["mcp"])

_MAX_BRACKETS = 100_000
"""`{` and `[` in a message: parsed, each takes a thousand times its byte."""


def is_installed() -> bool:
    """Whether the extra `mcp` is there."""
    return find_spec("mcp") is not None


def _refuse_other_sites(request: Request, settings: Settings) -> None:
    """Only scripts of our own address, and of sites that the operator has named, may speak to us,
    whatever a DNS server says of where they come from.

    Raises:
        Problem: 403 `origin_not_allowed`.
    """
    origin = request.headers.get("origin")
    if origin is None or "*" in settings.cors_origins or origin in settings.cors_origins:
        return
    own = urlsplit(settings.public_url)
    if origin != f"{own.scheme}://{own.netloc}":
        raise Problem("origin_not_allowed", "Name the site in DARKROOM_CORS_ORIGINS.")


class _Answer(Response):
    """What the SDK answers to a message whose body was read."""

    def __init__(self, server: Any, principal: Principal, body: bytes) -> None:
        super().__init__()
        self._server = server
        self._principal = principal
        self._message = body

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        from mcp.server.streamable_http_manager import StreamableHTTPSessionManager

        from api.compat.mcp.calls import PRINCIPAL

        message, self._message = self._message, b""
        unread: list[Message] = [{"type": "http.request", "body": message}]

        async def replay() -> Message:
            return unread.pop() if unread else await receive()

        # One for each request: nothing outlives it, and its end ends whatever it began. Only tools
        # take their time; clients limit the size of events, but not that of JSON.
        manager = StreamableHTTPSessionManager(
            self._server,
            stateless=True,
            json_response=b'"tools/call"' not in message,
            max_request_body_size=len(message) + 1,
        )
        del message
        async with manager.run():
            await manager.handle_request({**scope, PRINCIPAL: self._principal}, replay, send)


@cache
def _server() -> Any:
    from api.compat.mcp.server import build_server

    return build_server()


@router.post("/mcp", include_in_schema=False)
async def mcp(
    request: Request, resources: Res, principal: Annotated[Principal, Depends(authenticate)]
) -> Response:
    """One JSON-RPC message of an MCP client; see docs/mcp.md."""
    _refuse_other_sites(request, resources.settings)
    body = await request.body()
    vars(request).pop("_body")
    if body.count(b"{") + body.count(b"[") > _MAX_BRACKETS:
        raise Problem("body_too_large", f"At most {_MAX_BRACKETS} objects and lists are allowed.")
    return _Answer(await on_thread(_server), principal, body)
