"""Traces: one from the HTTP request through queue, worker and engine to the webhook.

Off, which is the default, a span costs a comparison, and the tracer is not even imported. On,
`shared.core.tracing` sends spans by OTLP/HTTP, as the standard `OTEL_*` variables say.

A trace goes from process to process as a W3C `traceparent`: in the header of the request, in the
Celery message, and in the job's row, which is there when a message is not.
"""

from collections.abc import Mapping
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any, Literal

import structlog

from shared.core.settings import Settings

if TYPE_CHECKING:
    from shared.core.tracing import Tracing

Kind = Literal["internal", "server", "client", "producer", "consumer"]

Attributes = Mapping[str, str | int | float | bool]
"""Named by OpenTelemetry's semantic conventions, or `darkroom.…`. Ids may be in it, never texts of
users."""

TRACEPARENT = "traceparent"
REQUEST_ID = "request_id"


class Span:
    """A piece of work in progress. This one records nothing: there are no traces, or the work
    belongs to none."""

    def __enter__(self) -> "Span":
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def rename(self, name: str) -> None:
        """Give it the name that was not known at its start."""

    def set(self, attributes: Attributes) -> None:
        """Add to what is known of it."""

    def fail(self, reason: str) -> None:
        """Mark it as failed, though nothing was raised."""


NOTHING = Span()
_tracing: "Tracing | None" = None


def configure_tracing(settings: Settings, service: str) -> None:
    """Begin to trace this process, if the settings say so, under this service's name."""
    global _tracing  # noqa: PLW0603 - one process is traced once
    if not settings.tracing or _tracing is not None:
        return
    from shared.core.tracing import Tracing

    _tracing = Tracing(service)


def shut_down_tracing() -> None:
    """Send what is still here, for two seconds at most, and trace no more."""
    global _tracing  # noqa: PLW0603
    if _tracing is not None:
        _tracing.close()
        _tracing = None


def is_tracing() -> bool:
    """Whether spans are recorded, and it is worth the trouble to look up what they belong to."""
    return _tracing is not None


def span(
    name: str,
    kind: Kind = "internal",
    *,
    parent: str | None = None,
    started: float | None = None,
    attributes: Attributes | None = None,
) -> AbstractContextManager[Span]:
    """A piece of work, and the parent of all spans inside it on this thread or task.

    Its own parent is the `traceparent` given, else the span around it. Only servers and consumers
    begin a trace; any other without a parent is not recorded, so that housekeeping makes none.
    An exception that leaves it is noted by its type, without its text.

    Args:
        name: the same for all work of one sort.
        kind: its role, by OpenTelemetry's names.
        parent: the traceparent of work elsewhere.
        started: `time.monotonic()` of its start, if that was earlier.
        attributes: what is known of it.
    """
    if _tracing is None:
        return NOTHING
    return _tracing.span(name, kind, parent, started, attributes)


def record(
    name: str, kind: Kind, started: float, ended: float, attributes: Attributes | None = None
) -> None:
    """A piece of work that is over, from one `time.monotonic()` to another, inside this span."""
    if _tracing is not None:
        _tracing.record(name, kind, started, ended, attributes)


def traceparent() -> str | None:
    """The trace context of the work in progress, to be continued elsewhere; None for none."""
    return None if _tracing is None else _tracing.traceparent()


def trace_ids() -> tuple[str, str] | None:
    """(trace id, span id) of the work in progress in hexadecimal, for its log lines."""
    return None if _tracing is None else _tracing.ids()


def message_headers() -> dict[str, Any]:
    """What a message carries so that its consumer's traces and logs continue these."""
    headers: dict[str, Any] = {}
    request_id = structlog.contextvars.get_contextvars().get(REQUEST_ID)
    if request_id is not None:
        headers[REQUEST_ID] = request_id
    context = traceparent()
    if context is not None:
        headers[TRACEPARENT] = context
    return headers
