"""One line an event, whoever writes it, in the form that was set."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from shared.core import telemetry
from shared.core.settings import Settings

PROJECT = Path(__file__).resolve().parents[3]

PROGRAM = """
import logging, threading, warnings
from logging.config import dictConfig
import structlog
from uvicorn.config import LOGGING_CONFIG
from shared.core.logging import configure_logging, get_logger
from shared.core.settings import Settings

dictConfig(LOGGING_CONFIG)  # what uvicorn does before it asks for the application
configure_logging(Settings(
    environment="local", database_url="postgresql://u:p@db/d", redis_url="redis://:p@redis",
    log_format={form!r},
))
structlog.contextvars.bind_contextvars(request_id="r1", tenant_id="t1", job_id="j1", attempt=2)
get_logger("own").info("own event", note="two\\nlines")
logging.getLogger("a.library").warning("library %s", "event")
logging.getLogger("uvicorn.error").error("server event")
warnings.warn("warned event")
def fail():
    raise ValueError("of a thread")
thread = threading.Thread(target=fail, name="unlucky")
thread.start()
thread.join()
key = "drk_abcdefghijkl_abcdefghijklmnopqrstuvwxyz0123456789ABCD"
get_logger("own").info("leak", header=f"Bearer {{key}}")
raise RuntimeError("at the end")
"""


def run(form: str) -> str:
    """What a process with this setting writes."""
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM.format(form=form)],
        capture_output=True,
        text=True,
        check=False,
        cwd=PROJECT,
    )
    assert done.returncode == 1
    assert done.stdout == ""
    return done.stderr


def test_json_is_one_line_an_event_with_the_ids_of_its_context() -> None:
    events = [json.loads(line) for line in run("json").splitlines()]
    assert [event["event"].partition("\n")[0].rpartition(": ")[2] for event in events] == [
        "own event",
        "library event",
        "server event",
        "warned event",
        "uncaught",
        "leak",
        "uncaught",
    ]
    ids = {"request_id": "r1", "tenant_id": "t1", "job_id": "j1", "attempt": 2}
    for event in events:
        assert {"level", "logger", "timestamp"} <= event.keys()
        if event.get("thread") != "unlucky":  # a thread has a context of its own
            assert ids.items() <= event.items(), event
    of_thread, at_end = (event for event in events if event["event"] == "uncaught")
    assert of_thread["exception"].endswith("ValueError: of a thread")
    assert at_end["exception"].endswith("RuntimeError: at the end")
    assert events[0]["note"] == "two\nlines"
    assert "uvwxyz" not in events[5]["header"]


def test_the_console_form_is_for_people() -> None:
    text = run("console")
    assert "own event" in text
    assert "job_id=j1" in text
    assert "server event" in text
    assert "RuntimeError: at the end" in text


# Traces that are off cost nothing: no span is made, no context is sent. That no tracer is imported
# is a test of `test_architecture.py`


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
