"""Traces that are off cost nothing: no tracer is imported, no span is made, no context is sent."""

import subprocess
import sys
from pathlib import Path

import pytest

from shared.core import telemetry
from shared.core.settings import Settings

PROJECT = Path(__file__).resolve().parents[3]


TRACERS = ("opentelemetry.sdk.trace", "opentelemetry.exporter", "shared.core.tracing")
"""Other parts of OpenTelemetry come with FastAPI and redis-py, which look for it by themselves."""


@pytest.mark.parametrize("module", ["api.app", "worker.cpu"])
def test_nobody_imports_a_tracer(module: str) -> None:
    program = (
        f"import sys, {module}; "
        f"print([name for name in sys.modules if name.startswith({TRACERS!r})])"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd=PROJECT
    )
    assert done.stdout.strip() == "[]"


def test_a_span_is_nothing(settings_off: Settings) -> None:
    telemetry.configure_tracing(settings_off, "test")
    assert not telemetry.is_tracing()
    with telemetry.span("work", "server", attributes={"a": 1}) as span:
        assert span is telemetry.NOTHING
        span.set({"b": 2})
        span.rename("other")
        span.fail("not at all")
        assert telemetry.traceparent() is None
        assert telemetry.trace_ids() is None
        assert telemetry.message_headers() == {}


@pytest.fixture
def settings_off() -> Settings:
    return Settings(
        environment="local", database_url="postgresql://u:p@db/d", redis_url="redis://:p@redis"
    )
