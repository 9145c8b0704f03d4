"""Metrics of what Darkroom rests on: Postgres, Redis and S3."""

import time
from collections.abc import Iterator
from contextlib import contextmanager

from botocore.exceptions import ClientError
from prometheus_client import Counter, Histogram
from sqlalchemy import Engine, event
from sqlalchemy.engine import ExceptionContext

from shared import telemetry

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
    "What lay in Redis and could not be read, by what it should have been; it was dropped.",
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


def watch_database(engine: Engine) -> None:
    """Count this engine's errors."""
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
