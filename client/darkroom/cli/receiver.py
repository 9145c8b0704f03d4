"""A small HTTP server on this machine that receives webhooks and verifies them."""

import queue
import threading
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Self

_MAX_BODY = 256 * 1024
"""Bytes; a payload has at most 20 kB."""
_MAX_REMEMBERED = 10_000
_SOCKET_SECONDS = 10

Verify = Callable[[bytes, Mapping[str, str]], dict[str, Any]]
"""(body, headers) -> the event; raises ValueError if the signature is wrong."""


@dataclass(frozen=True)
class Arrival:
    """One request. `event` is None if the signature was wrong; `problem` says why."""

    event: dict[str, Any] | None
    problem: str | None = None
    is_repeat: bool = False


class Receiver:
    """Listens on loopback inside `with`; received events are in `arrivals`."""

    def __init__(self, port: int) -> None:
        self.arrivals: queue.SimpleQueue[Arrival] = queue.SimpleQueue()
        self._seen: OrderedDict[str, None] = OrderedDict()
        self._lock = threading.Lock()
        self._verify: Verify | None = None
        self._server = _Server(("127.0.0.1", port), self)
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.1,), daemon=True)

    @property
    def url(self) -> str:
        """Where it listens."""
        return f"http://127.0.0.1:{self._server.server_address[1]}/"

    def trust(self, verify: Verify) -> None:
        """Verify signatures with this from now on; until then nothing is accepted."""
        self._verify = verify

    def take(self, body: bytes, headers: Mapping[str, str]) -> int:
        """Handle one request; return the status to answer with."""
        if self._verify is None:
            return 503
        try:
            event = self._verify(body, headers)
        except ValueError as error:
            self.arrivals.put(Arrival(None, str(error)))
            return 400
        self.arrivals.put(Arrival(event, is_repeat=self._known(str(event.get("id")))))
        return 204

    def _known(self, event_id: str) -> bool:
        with self._lock:
            known = event_id in self._seen
            self._seen[event_id] = None
            if len(self._seen) > _MAX_REMEMBERED:
                self._seen.popitem(last=False)
        return known

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, address: tuple[str, int], receiver: Receiver) -> None:
        self.receiver = receiver
        super().__init__(address, _Handler)


class _Handler(BaseHTTPRequestHandler):
    timeout = _SOCKET_SECONDS

    def do_POST(self) -> None:
        """Receive one webhook."""
        length = self.headers.get("Content-Length", "")
        if not length.isdecimal() or int(length) > _MAX_BODY:
            self._answer(413)
            return
        server = self.server
        assert isinstance(server, _Server)  # noqa: S101
        headers = {name.lower(): value for name, value in self.headers.items()}
        self._answer(server.receiver.take(self.rfile.read(int(length)), headers))

    def _answer(self, status: int) -> None:
        self.send_response(status)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002
        """Log nothing: stderr belongs to the command."""
