"""A worker's listener: its port, its token, and several processes that answer as one."""

import os
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest
from prometheus_client import CollectorRegistry, Counter

from shared.core import metrics as core_metrics
from shared.core.metrics import MetricsListener, show_zeros
from shared.core.settings import Settings
from shared.core.worker_registry import WorkerState
from tests.processes import free_port
from worker.core.metrics import probes

PROJECT = Path(__file__).resolve().parents[3]

Listen = Callable[..., MetricsListener]


@pytest.fixture
def listen(monkeypatch: pytest.MonkeyPatch) -> Iterator[Listen]:
    """Starts listeners and ends them."""
    monkeypatch.setattr(core_metrics, "REGISTRY", CollectorRegistry())
    monkeypatch.setattr(core_metrics, "_POLL_SECONDS", 0.01)  # for so long does its end take
    started: list[MetricsListener] = []

    def start(asked: dict[str, Any] | None = None, **settings: Any) -> MetricsListener:
        url = {"database_url": "postgresql://u:p@db/d", "redis_url": "redis://:p@redis"}
        started.append(
            MetricsListener(Settings(environment="local", **(url | settings)), probes=asked or {})
        )
        started[-1].start()
        return started[-1]

    yield start
    for listener in started:
        listener.close()


def test_port_zero_listens_nowhere(listen: Listen) -> None:
    assert listen(metrics_port=0).port is None


def test_a_second_worker_of_a_host_takes_the_next_port(listen: Listen) -> None:
    port = free_port()
    first, second = listen(metrics_port=port), listen(metrics_port=port)
    assert first.port == port
    assert second.port is not None
    assert port < second.port < port + core_metrics.PORTS
    for listener in (first, second):
        answer = httpx2.get(
            f"http://127.0.0.1:{listener.port}/metrics", trust_env=False, timeout=60
        )
        assert answer.status_code == 200


def test_a_worker_without_a_port_goes_on(listen: Listen, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(core_metrics, "PORTS", 1)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        listener = listen(metrics_port=taken.getsockname()[1])
    assert listener.port is None


def test_without_a_token_whoever_reaches_it_may_read(listen: Listen) -> None:
    listener = listen(metrics_port=free_port())
    url = f"http://127.0.0.1:{listener.port}/metrics"
    assert httpx2.get(url, trust_env=False, timeout=60).status_code == 200


@pytest.mark.parametrize(
    ("header", "status"),
    [
        ("Bearer a-token-of-the-operator", 200),
        ("bearer   a-token-of-the-operator", 200),
        ("Basic a-token-of-the-operator", 401),
        ("Bearer a-token-of-the-operatoR", 401),
        ("Bearer", 401),
        ("Bearer \u00fcber", 401),
    ],
)
def test_the_token_is_asked_for(listen: Listen, header: str, status: int) -> None:
    listener = listen(metrics_port=free_port(), metrics_token="a-token-of-the-operator")
    answer = httpx2.get(
        f"http://127.0.0.1:{listener.port}/metrics",
        headers={b"Authorization": header.encode()},
        trust_env=False,
        timeout=60,
    )
    assert answer.status_code == status


@pytest.mark.long
def test_processes_with_a_common_folder_answer_as_one(tmp_path: Path) -> None:
    """prometheus-client's multiprocess mode, as `uvicorn --workers` needs it."""
    program = (
        "from api.core.metrics import PROBLEMS, REQUEST_SECONDS\n"
        "from shared.core.metrics import render\n"
        "PROBLEMS.labels('not_found').inc(2)\n"
        "REQUEST_SECONDS.labels('GET', '/').observe(0.2)\n"
        "print(render().decode())"
    )
    environment = {**os.environ, "PROMETHEUS_MULTIPROC_DIR": str(tmp_path)}
    said = ""
    for _ in range(2):
        done = subprocess.run(
            [sys.executable, "-c", program],
            capture_output=True,
            text=True,
            check=True,
            cwd=PROJECT,
            env=environment,
        )
        said = done.stdout
    assert 'darkroom_http_problems_total{code="not_found"} 4.0' in said
    assert 'darkroom_http_request_seconds_count{method="GET",route="/"} 2.0' in said


@pytest.mark.parametrize(
    ("state", "healthy", "started", "ready"),
    [
        (WorkerState.STARTING, 200, 503, 503),
        (WorkerState.WARMING, 200, 503, 503),
        (WorkerState.READY, 200, 200, 200),
        (WorkerState.BUSY, 200, 200, 200),
        (WorkerState.DRAINING, 200, 200, 503),
        (WorkerState.FAULTY, 503, 200, 503),
    ],
)
def test_probes_follow_the_workers_state(
    listen: Listen, state: WorkerState, healthy: int, started: int, ready: int
) -> None:
    listener = listen(probes(lambda: {"state": state}), metrics_port=free_port())
    answered = {
        path: httpx2.get(
            f"http://127.0.0.1:{listener.port}{path}", trust_env=False, timeout=60
        ).status_code
        for path in ("/healthz", "/startupz", "/readyz")
    }
    assert answered == {"/healthz": healthy, "/startupz": started, "/readyz": ready}


def test_a_series_begins_at_zero() -> None:
    """`increase()` and `rate()` miss the event that a series is born at."""
    counter = Counter("failures", "Of something.", ["part", "kind"], registry=None)
    show_zeros(counter, ("a", "b"), ("x",))
    samples = [sample for family in counter.collect() for sample in family.samples]
    shown = {tuple(each.labels.values()) for each in samples if each.name == "failures_total"}
    assert shown == {("a", "x"), ("b", "x")}
