"""A worker's listener: its port, its token, and several processes that answer as one."""

import os
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx2
import pytest
from prometheus_client import CollectorRegistry

from shared.core import metrics as core_metrics
from shared.core.metrics import MetricsListener
from shared.core.settings import Settings
from tests.processes import free_port

PROJECT = Path(__file__).resolve().parents[3]

Listen = Callable[..., MetricsListener]


@pytest.fixture
def listen(monkeypatch: pytest.MonkeyPatch) -> Iterator[Listen]:
    """Starts listeners and ends them."""
    monkeypatch.setattr(core_metrics, "REGISTRY", CollectorRegistry())
    started: list[MetricsListener] = []

    def start(**settings: object) -> MetricsListener:
        url = {"database_url": "postgresql://u:p@db/d", "redis_url": "redis://:p@redis"}
        started.append(MetricsListener(Settings(environment="local", **url, **settings)))
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
        answer = httpx2.get(f"http://127.0.0.1:{listener.port}/metrics", trust_env=False)
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
    assert httpx2.get(url, trust_env=False).status_code == 200


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
        headers={"Authorization": header.encode()},
        trust_env=False,
    )
    assert answer.status_code == status


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
