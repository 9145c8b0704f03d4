"""OpenTelemetry behind `shared.core.telemetry`; imported only where traces are on."""

import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

from opentelemetry import context as context_api
from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import SERVICE_NAME, Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.trace import SpanKind, Status, StatusCode
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from shared.core.telemetry import NOTHING, TRACEPARENT, Attributes, Kind, Span

_BEGINS_TRACES = frozenset({"server", "consumer"})
_CLOSE_SECONDS = 2.0


class _Recorded(Span):
    """A span that OpenTelemetry records."""

    def __init__(self, recorded: trace.Span) -> None:
        self._recorded = recorded

    def rename(self, name: str) -> None:
        self._recorded.update_name(name)

    def set(self, attributes: Attributes) -> None:
        self._recorded.set_attributes(attributes)

    def fail(self, reason: str) -> None:
        self._recorded.set_status(Status(StatusCode.ERROR, reason))


class Tracing:
    """The tracer of a process. Sampling, limits and the receiver are OpenTelemetry's settings."""

    def __init__(self, service: str) -> None:
        # Given, the standard variable goes before what the process calls itself.
        name = os.environ.get("OTEL_SERVICE_NAME") or service
        resource = Resource.create({SERVICE_NAME: name})
        self._provider = TracerProvider(resource=resource, shutdown_on_exit=False)
        self._provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
        self._tracer = self._provider.get_tracer("darkroom")
        self._propagator = TraceContextTextMapPropagator()

    @contextmanager
    def span(
        self,
        name: str,
        kind: Kind,
        parent: str | None,
        started: float | None,
        attributes: Attributes | None,
    ) -> Iterator[Span]:
        """See `shared.core.telemetry.span`."""
        around = self._context(parent)
        if kind not in _BEGINS_TRACES and not _is_traced(around):
            yield NOTHING
            return
        started = None if started is None else _epoch(started)
        span = self._tracer.start_span(
            name, around, SpanKind[kind.upper()], attributes, start_time=started
        )
        token = context_api.attach(trace.set_span_in_context(span, around))
        try:
            yield _Recorded(span)
        except BaseException as error:
            span.set_attribute("error.type", type(error).__name__)
            span.set_status(Status(StatusCode.ERROR))
            raise
        finally:
            context_api.detach(token)
            span.end()

    def record(
        self, name: str, kind: Kind, started: float, ended: float, attributes: Attributes | None
    ) -> None:
        """See `shared.core.telemetry.record`."""
        around = context_api.get_current()
        if _is_traced(around):
            begin, end = _epoch(started), _epoch(ended)
            span = self._tracer.start_span(
                name, around, SpanKind[kind.upper()], attributes, start_time=begin
            )
            span.end(end)

    def traceparent(self) -> str | None:
        """Of the current span."""
        carrier: dict[str, str] = {}
        self._propagator.inject(carrier)
        return carrier.get(TRACEPARENT)

    def ids(self) -> tuple[str, str] | None:
        """Of the current span."""
        current = trace.get_current_span().get_span_context()
        if not current.is_valid:
            return None
        return trace.format_trace_id(current.trace_id), trace.format_span_id(current.span_id)

    def close(self) -> None:
        """Send what is left; a receiver that hangs keeps nobody."""
        thread = threading.Thread(target=self._provider.shutdown, name="last-spans", daemon=True)
        thread.start()
        thread.join(_CLOSE_SECONDS)

    def _context(self, parent: str | None) -> Context:
        if parent is None:
            return context_api.get_current()
        return self._propagator.extract({TRACEPARENT: parent}, context=Context())


def _is_traced(around: Context) -> bool:
    return trace.get_current_span(around).get_span_context().is_valid


def _epoch(monotonic: float) -> int:
    """Nanoseconds since 1970 of a moment in `time.monotonic()`."""
    return time.time_ns() - int((time.monotonic() - monotonic) * 1e9)
