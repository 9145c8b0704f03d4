"""Metrics of Postgres, Redis and S3, and the listener that serves `/metrics`."""

import hmac
import os
import socket
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from itertools import product
from socketserver import TCPServer
from types import MappingProxyType
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

from botocore.exceptions import ClientError
from prometheus_client import (
    CONTENT_TYPE_PLAIN_0_0_4,
    REGISTRY,
    CollectorRegistry,
    Counter,
    Histogram,
    generate_latest,
)
from prometheus_client.exposition import ThreadingWSGIServer
from prometheus_client.multiprocess import MultiProcessCollector
from prometheus_client.registry import Collector
from pydantic import SecretStr
from sqlalchemy import Engine, event
from sqlalchemy.engine import ExceptionContext

from shared.core import telemetry
from shared.core.logging import get_logger
from shared.core.settings import Settings

DATABASE_ERRORS = Counter(
    "darkroom_database_errors",
    "Statements or connections that Postgres refused, ended or did not answer, by class.",
    ["kind"],
)

REDIS_ERRORS = Counter(
    "darkroom_redis_errors",
    "Calls that Redis did not answer; each makes the API leave it alone for a second.",
)

REDIS_UNREADABLE = Counter(
    "darkroom_redis_unreadable",
    "Unreadable entries in Redis, dropped, by what they should have been.",
    ["what"],
)

S3_SECONDS = Histogram(
    "darkroom_s3_request_seconds",
    "Calls to S3, the library's own retries included.",
    ["operation"],
    buckets=(0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 20, 40),
)

S3_ERRORS = Counter(
    "darkroom_s3_errors",
    "Calls to S3 that failed: refused (an answer), missing (no such object), unreachable.",
    ["operation", "kind"],
)

_KIND_OF_SQLSTATE = {
    "08": "connection",
    "22": "data",
    "23": "integrity",
    "25": "read_only",
    "28": "access",
    "40": "conflict",
    "42": "statement",
    "53": "resources",
    "55": "lock",
    "57": "shutdown_or_timeout",
}
"""By the class of a SQLSTATE: appendix A of PostgreSQL's manual."""

KINDS_OF_S3_ERRORS = ("refused", "missing", "unreachable")


def show_zeros(metric: Counter | Histogram, *labels: Iterable[str]) -> None:
    """Begin these series now: `increase()` and `rate()` miss the event that a series is born at."""
    for values in product(*labels):
        metric.labels(*values)


def watch_database(engine: Engine) -> None:
    """Count this engine's errors."""
    show_zeros(DATABASE_ERRORS, sorted({*_KIND_OF_SQLSTATE.values(), "other"}))
    event.listen(engine, "handle_error", _count_database_error)


def _count_database_error(context: ExceptionContext) -> None:
    sqlstate = getattr(context.original_exception, "sqlstate", None)
    # libpq knows no state of a server that it cannot reach.
    kind = _KIND_OF_SQLSTATE.get(sqlstate[:2], "other") if sqlstate else "connection"
    DATABASE_ERRORS.labels(kind).inc()


@contextmanager
def s3_call(operation: str) -> Iterator[None]:
    """Measure one call to S3, named as its API names it; a part of the trace there is."""
    begun = time.perf_counter()
    attributes = {"rpc.system.name": "aws-api", "rpc.method": f"S3/{operation}"}
    with telemetry.span(f"S3 {operation}", "client", attributes=attributes):
        try:
            yield
        except Exception as error:
            S3_ERRORS.labels(operation, _kind_of(error)).inc()
            raise
        finally:
            S3_SECONDS.labels(operation).observe(time.perf_counter() - begun)


def s3_code(error: Exception) -> str | None:
    """The code, or else the HTTP status, with which S3 refused; None: it did not answer."""
    if not isinstance(error, ClientError):
        return None
    code = error.response.get("Error", {}).get("Code")
    return None if code is None else str(code)


def _kind_of(error: Exception) -> str:
    code = s3_code(error)
    if code is None:
        return "unreachable"
    return "missing" if code in ("NoSuchKey", "404") else "refused"


# The listener answers probes, too, which carry no token.

log = get_logger(__name__)
CONTENT_TYPE = CONTENT_TYPE_PLAIN_0_0_4

PORTS = 16
"""How many ports a process tries, beginning with the one that was set."""

_SOCKET_TIMEOUT_SECONDS = 10.0
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
    """`/metrics` on a port of its own. Whatever happens to it, the process continues."""

    def __init__(
        self,
        settings: Settings,
        *collectors: Collector,
        probes: Mapping[str, Callable[[], bool]] = MappingProxyType({}),
    ) -> None:
        """`collectors` are asked at each scrape, besides the metrics that count by themselves.

        `probes`: paths, and what must hold for each to answer 200 rather than 503.
        """
        self._settings = settings
        self._probes = {"/healthz": lambda: True, **probes}
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
                self._server = make_server(
                    self._settings.metrics_host, port, self._answer, _Server, _Handler
                )
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

    def _answer(self, environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
        probe = self._probes.get(environ["PATH_INFO"])
        if probe is not None and environ["REQUEST_METHOD"] == "GET":
            return _plain(start_response, "200 OK" if probe() else "503 Service Unavailable")
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
    timeout = _SOCKET_TIMEOUT_SECONDS

    def log_message(self, format: str, *arguments: object) -> None:  # noqa: A002 - its name there
        """A scrape is no event."""
