"""Serve `/metrics`: as an answer of the API, and on a small listener beside the API or a worker.

The listener has `/healthz`, too, for probes, which carry no token.
"""

import hmac
import os
import socket
import threading
from collections.abc import Callable, Iterable
from functools import partial
from socketserver import TCPServer
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

from prometheus_client import CONTENT_TYPE_PLAIN_0_0_4, REGISTRY, CollectorRegistry, generate_latest
from prometheus_client.exposition import ThreadingWSGIServer
from prometheus_client.multiprocess import MultiProcessCollector
from prometheus_client.registry import Collector
from pydantic import SecretStr

from shared.logging import get_logger
from shared.settings import Settings

log = get_logger(__name__)

CONTENT_TYPE = CONTENT_TYPE_PLAIN_0_0_4
PORTS = 16
"""How many ports a process tries, beginning with the one that was set."""
_PATIENCE_SECONDS = 10.0
"""For a scraper to send its request; one that says nothing gives its thread back."""
_POLL_SECONDS = 0.2
"""How soon it notices that it is to stop."""
_MULTIPROCESS = "PROMETHEUS_MULTIPROC_DIR"
"""The folder in which several processes of one uvicorn keep their numbers, if there are several."""

Environ = dict[str, str]
StartResponse = Callable[[str, list[tuple[str, str]]], object]


def render() -> bytes:
    """Every metric of this process, or of all processes that share a folder, in the text format."""
    if _MULTIPROCESS not in os.environ:
        return generate_latest(REGISTRY)
    registry = CollectorRegistry()
    MultiProcessCollector(registry)  # type: ignore[no-untyped-call]
    return generate_latest(registry)


def is_authorized(authorization: str, token: SecretStr) -> bool:
    """Whether an `Authorization` header carries the token."""
    scheme, _separator, given = authorization.partition(" ")
    wanted = token.get_secret_value().encode()
    return scheme.lower() == "bearer" and hmac.compare_digest(given.strip().encode(), wanted)


class MetricsListener:
    """`/metrics` on a port of its own. Whatever happens to it, the process goes on."""

    def __init__(
        self, settings: Settings, *collectors: Collector, alive: Callable[[], bool] = lambda: True
    ) -> None:
        """`collectors` are asked at each scrape, beside the metrics that count by themselves."""
        self._settings = settings
        self._alive = alive
        for collector in collectors:
            REGISTRY.register(collector)
        self._server: WSGIServer | None = None

    @property
    def port(self) -> int | None:
        """Where it listens; None: nowhere."""
        return None if self._server is None else self._server.server_port

    def start(self) -> None:
        """Listen on the port that was set or the first free one behind it; 0 listens nowhere."""
        first = self._settings.metrics_port
        if first == 0:
            return
        for port in range(first, first + PORTS):
            try:
                self._server = self._open(port)
            except OSError as error:
                reason = error
                continue
            serve = partial(self._server.serve_forever, _POLL_SECONDS)
            threading.Thread(target=serve, name="metrics", daemon=True).start()
            log.info("metrics_listen", host=self._settings.metrics_host, port=port)
            return
        log.error("metrics_not_served", first_port=first, tried=PORTS, reason=str(reason))

    def close(self) -> None:
        """Stop listening."""
        if self._server is not None:
            self._server.shutdown()
            self._server.server_close()

    def _open(self, port: int) -> WSGIServer:
        return make_server(
            self._settings.metrics_host,
            port,
            self._answer,
            server_class=_Server,
            handler_class=_Handler,
        )

    def _answer(self, environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
        if environ["PATH_INFO"] == "/healthz" and environ["REQUEST_METHOD"] == "GET":
            return _plain(start_response, "200 OK" if self._alive() else "503 Service Unavailable")
        token = self._settings.metrics_token
        if environ["PATH_INFO"] != "/metrics" or environ["REQUEST_METHOD"] != "GET":
            return _plain(start_response, "404 Not Found")
        if token is not None and not is_authorized(environ.get("HTTP_AUTHORIZATION", ""), token):
            return _plain(start_response, "401 Unauthorized", ("WWW-Authenticate", "Bearer"))
        start_response("200 OK", [("Content-Type", CONTENT_TYPE)])
        return [render()]


def _plain(start: StartResponse, status: str, *headers: tuple[str, str]) -> Iterable[bytes]:
    start(status, [("Content-Type", "text/plain"), *headers])
    return [f"{status}\n".encode()]


class _Server(ThreadingWSGIServer):
    def __init__(self, address: tuple[str, int], handler: type[WSGIRequestHandler]) -> None:
        self.address_family = socket.AF_INET6 if ":" in address[0] else socket.AF_INET
        super().__init__(address, handler)

    def server_bind(self) -> None:
        """As its parent's, without asking a name server what this host is called."""
        TCPServer.server_bind(self)
        self.server_name = str(self.server_address[0])
        self.server_port = int(self.server_address[1])
        self.setup_environ()


class _Handler(WSGIRequestHandler):
    timeout = _PATIENCE_SECONDS

    def log_message(self, format: str, *arguments: object) -> None:  # noqa: A002 - its name there
        """A scrape is no event."""
