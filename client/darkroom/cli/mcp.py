"""`darkroom mcp`: an MCP server on stdin and stdout, which is the service's own at `/mcp`."""

import asyncio
import base64
import json
import os
import sys
import threading
from typing import TYPE_CHECKING, Any

import typer

from darkroom.cli.command import GENERATE, Cli, command
from darkroom.configuration import Configuration, find_configuration

if TYPE_CHECKING:
    import httpx2

app = typer.Typer()

_VERSION = "io.modelcontextprotocol/protocolVersion"
_READ_SECONDS = 90.0
"""Until the service must be heard of again; it says every 15 s that it is alive."""
_FAILED = -32603
_MALFORMED = -32700
_BLOCK = 64 * 1024


@command(app, "mcp", panel=GENERATE, examples=["darkroom mcp"])
def mcp(cli: Cli) -> None:
    """Serve MCP on stdin and stdout, for agents that start a program.

    Tools, resources, progress and tasks are those of the server, which agents that speak HTTP reach
    at its path /mcp.
    """
    asyncio.run(Proxy(find_configuration(cli.url, cli.api_key)).run())


class Proxy:
    """Sends each request to the service, and writes what it answers."""

    def __init__(self, configuration: Configuration) -> None:
        self._configuration = configuration
        self._handshake: str | None = None
        """The protocol's version, where the client shook hands."""
        self._running: dict[str, asyncio.Task[None]] = {}

    async def run(self) -> None:
        """Until stdin ends and everything is answered."""
        import httpx2

        lines: asyncio.Queue[bytes | None] = asyncio.Queue()
        loop = asyncio.get_running_loop()
        threading.Thread(target=_read_lines, args=(loop, lines), daemon=True).start()
        async with httpx2.AsyncClient(
            base_url=self._configuration.url,
            headers={
                "Authorization": f"Bearer {self._configuration.api_key}",
                "Accept": "application/json, text/event-stream",
            },
            timeout=httpx2.Timeout(self._configuration.timeout, read=_READ_SECONDS),
        ) as http:
            while (line := await lines.get()) is not None:
                self._take(http, line)
            await asyncio.gather(*self._running.values(), return_exceptions=True)

    def _take(self, http: "httpx2.AsyncClient", line: bytes) -> None:
        try:
            message = json.loads(line)
        except (ValueError, RecursionError):
            message = None
        if not isinstance(message, dict):
            _write(_error(None, _MALFORMED, "This is not one JSON-RPC message."))
        elif message.get("method") == "notifications/cancelled":
            task = self._running.get(_key(_params(message).get("requestId")))
            if task is not None:
                task.cancel()
        elif "method" in message and "id" in message:  # the service keeps no notifications
            key = _key(message["id"])
            task = asyncio.create_task(self._forward(http, message))
            self._running[key] = task
            task.add_done_callback(lambda _: self._running.pop(key, None))

    async def _forward(self, http: "httpx2.AsyncClient", message: dict[str, Any]) -> None:
        import httpx2

        try:
            headers = self._headers(message)
            async with http.stream("POST", "/mcp", json=message, headers=headers) as response:
                if response.headers.get("content-type", "").startswith("text/event-stream"):
                    async for event in httpx2.EventSource(response, max_event_size=None):
                        if event.data:
                            self._answer(message, json.loads(event.data))
                else:
                    await response.aread()
                    self._answer(message, _read(message, response))
        except (httpx2.HTTPError, httpx2.SSEError, ValueError) as error:
            _write(_error(message["id"], _FAILED, f"{self._configuration.url}: {error!r}"))

    def _answer(self, request: dict[str, Any], message: dict[str, Any]) -> None:
        if request["method"] == "initialize" and "result" in message:
            self._handshake = message["result"].get("protocolVersion")
        _write(message)

    def _headers(self, message: dict[str, Any]) -> dict[str, str]:
        """What the transport over HTTP repeats of a message."""
        method, params = message["method"], _params(message)
        meta = params.get("_meta")
        version = meta.get(_VERSION) if isinstance(meta, dict) else None
        if version is None:
            known = None if method == "initialize" else self._handshake
            return {} if known is None else {"Mcp-Protocol-Version": known}
        headers = {"Mcp-Protocol-Version": str(version), "Mcp-Method": str(method)}
        field = "uri" if method == "resources/read" else "name"
        name = params.get("taskId" if str(method).startswith("tasks/") else field)
        if isinstance(name, str):
            plain = name.isascii() and name.isprintable() and name == name.strip()
            coded = base64.b64encode(name.encode()).decode()
            headers["Mcp-Name"] = name if plain else f"=?base64?{coded}?="
        return headers


def _read_lines(loop: asyncio.AbstractEventLoop, lines: "asyncio.Queue[bytes | None]") -> None:
    """On a thread of its own, which may hang in `read` when the program ends."""
    rest = b""
    while block := os.read(sys.stdin.fileno(), _BLOCK):
        *whole, rest = (rest + block).split(b"\n")
        for line in filter(bytes.strip, whole):
            loop.call_soon_threadsafe(lines.put_nowait, line)
    if rest.strip():
        loop.call_soon_threadsafe(lines.put_nowait, rest)
    loop.call_soon_threadsafe(lines.put_nowait, None)


def _read(request: dict[str, Any], response: "httpx2.Response") -> dict[str, Any]:
    """The answer, or the service's problem as JSON-RPC tells of it."""
    answer = response.json()
    if isinstance(answer, dict) and "jsonrpc" in answer:
        return answer
    problem = answer if isinstance(answer, dict) else {}
    text = problem.get("detail") or problem.get("title") or f"HTTP {response.status_code}"
    if response.status_code == 404:
        text = "This server has no MCP: it is older, or DARKROOM_COMPAT_MCP is off."
    data = {"code": problem.get("code"), "status": response.status_code}
    return _error(request["id"], _FAILED, text, data)


def _params(message: dict[str, Any]) -> dict[str, Any]:
    params = message.get("params")
    return params if isinstance(params, dict) else {}


def _key(request_id: Any) -> str:
    """1 and "1" are two ids."""
    return json.dumps(request_id)


def _error(request_id: Any, code: int, text: str, data: Any = None) -> dict[str, Any]:
    error = {"code": code, "message": text} | ({} if data is None else {"data": data})
    return {"jsonrpc": "2.0", "id": request_id, "error": error}


def _write(message: dict[str, Any]) -> None:
    sys.stdout.write(json.dumps(message) + "\n")
    sys.stdout.flush()
