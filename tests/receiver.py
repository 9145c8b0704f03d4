"""A webhook receiver on loopback that remembers what it got and answers as a test wants."""

import contextlib
import json
import socket
import ssl
import struct
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Self

from tests.processes import wait_until


@dataclass(frozen=True)
class Received:
    """One request, as it came."""

    path: str
    headers: Mapping[str, str]
    body: bytes
    at: float
    """`time.monotonic()` when the body was whole."""

    @property
    def id(self) -> str:
        """The `webhook-id`."""
        return self.headers["webhook-id"]

    @property
    def message(self) -> dict[str, Any]:
        """The payload."""
        message: dict[str, Any] = json.loads(self.body)
        return message


Behaviour = Callable[["Request"], None]


class Request(BaseHTTPRequestHandler):
    """One exchange, in the hands of a behaviour."""

    protocol_version = "HTTP/1.1"
    server: "_Server"
    received: Received

    def do_POST(self) -> None:
        """Take the body, remember it, behave."""
        length = int(self.headers.get("content-length", "0"))
        body = self.rfile.read(length)
        if len(body) < length:
            self.close_connection = True
            return  # The sender went away before it had said all: nothing was received.
        headers = {name.lower(): value for name, value in self.headers.items()}
        self.received = Received(self.path, headers, body, time.monotonic())
        receiver = self.server.receiver
        with receiver.lock:
            receiver.received.append(self.received)
            receiver.in_flight += 1
            receiver.most_in_flight = max(receiver.most_in_flight, receiver.in_flight)
        self.close_connection = True
        try:
            with contextlib.suppress(OSError):
                receiver.behaviour(self)
        finally:
            with receiver.lock:
                receiver.in_flight -= 1

    def reply(
        self, status: int, headers: Mapping[str, str] | None = None, body: bytes = b""
    ) -> None:
        """Send one whole answer."""
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *arguments: object) -> None:  # noqa: A002 - its name there
        """Stay silent."""


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128
    receiver: "Receiver"

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that breaks off is part of the game."""


class Receiver:
    """A server for the length of a `with` block."""

    def __init__(
        self, behaviour: Behaviour | None = None, tls: ssl.SSLContext | None = None
    ) -> None:
        self.behaviour: Behaviour = behaviour or answer(200)
        self.received: list[Received] = []
        self.in_flight = 0
        self.most_in_flight = 0
        self.lock = threading.Lock()
        self._server = _Server(("127.0.0.1", 0), Request)
        self._server.receiver = self
        if tls is not None:
            self._server.socket = tls.wrap_socket(
                self._server.socket, server_side=True, do_handshake_on_connect=False
            )
        scheme = "https" if tls is not None else "http"
        self.url = f"{scheme}://127.0.0.1:{self._server.server_port}/hooks"

    def of_type(self, kind: str) -> list[Received]:
        """What came of one type of event."""
        return [request for request in list(self.received) if request.message["type"] == kind]

    def wait(self, count: int = 1, seconds: float = 30.0) -> list[Received]:
        """What has come, once there are `count` requests.

        Raises:
            AssertionError: there were not within the time.
        """
        wait_until(lambda: len(self.received) >= count, seconds, f"{count} webhooks")
        return list(self.received)

    def __enter__(self) -> Self:
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()


def answer(status: int, headers: Mapping[str, str] | None = None, body: bytes = b"ok") -> Behaviour:
    """Answer at once."""
    return lambda request: request.reply(status, headers, body)


def hang(until: threading.Event) -> Behaviour:
    """Say nothing until the event, then answer 200."""

    def behave(request: Request) -> None:
        until.wait(60)
        request.reply(200)

    return behave


def reset(request: Request) -> None:
    """Cut the connection with a RST."""
    request.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    request.connection.close()


def drip(request: Request) -> None:
    """Answer 200, and then send the body byte by byte, for ever."""
    request.send_response(200)
    request.send_header("content-length", "1000000")
    request.end_headers()
    while True:
        request.wfile.write(b".")
        time.sleep(0.05)
