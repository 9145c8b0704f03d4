"""A whole system that is observed: API, generate worker and CPU worker, with traces and metrics on.

It has a database and a Redis of its own, so that no other test's processes take its jobs.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import httpx2
import pytest
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.samples import Sample
from sqlalchemy import create_engine
from sqlalchemy.orm import Session, sessionmaker

from deploy.local.servers import EmbeddedServers
from deploy.tenants import create_key
from shared.core.database import session_factory
from shared.core.settings import with_driver
from tests.conftest import MIGRATED
from tests.integration.telemetry.collector import Collector
from tests.processes import (
    QUICK_WORKER,
    ApiProcess,
    Process,
    WorkerProcess,
    free_port,
    together,
)

TOKEN = "a-token-of-the-operator"
_REDIS_DATABASE = "7"


@dataclass(frozen=True)
class Observed:
    """The running system."""

    collector: Collector
    api: ApiProcess
    generate: WorkerProcess
    cpu: WorkerProcess
    database: sessionmaker[Session]
    environment: dict[str, str]

    def scrape(self, process: Process, token: str | None = TOKEN) -> httpx2.Response:
        """A process's `/metrics`."""
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        base = process.url if isinstance(process, ApiProcess) else _metrics_url(process)
        return httpx2.get(f"{base}/metrics", headers=headers, trust_env=False, timeout=20)

    def probe(self, worker: Process, path: str) -> int:
        """The status of a worker's probe."""
        url = f"{_metrics_url(worker)}{path}"
        return httpx2.get(url, trust_env=False, timeout=20).status_code

    def samples(self, process: Process) -> list[Sample]:
        """Every sample of a process."""
        answer = self.scrape(process)
        assert answer.status_code == 200, answer.text
        families = text_string_to_metric_families(answer.text)
        return [sample for family in families for sample in family.samples]

    def value(self, process: Process, name: str, **labels: str) -> float | None:
        """The sum of the samples with this name and these labels; None where there are none."""
        found = [
            sample.value
            for sample in self.samples(process)
            if sample.name == name and labels.items() <= sample.labels.items()
        ]
        return sum(found) if found else None


def _metrics_url(worker: Process) -> str:
    said = [event for event in log_events(worker) if event["event"] == "metrics_listen"]
    return f"http://127.0.0.1:{said[-1]['port']}"


@pytest.fixture(scope="session")
def observed(
    servers: EmbeddedServers, environment: dict[str, str], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Observed]:
    """The system, for all tests of this folder."""
    url = servers.postgres.create_database("observed", template=MIGRATED)
    key = create_key(url, tenant="observed", name="observed", scopes=["jobs", "images", "search"])
    logs = tmp_path_factory.mktemp("observed")
    with Collector() as collector:
        own = {
            **environment,
            "DARKROOM_DATABASE_URL": url,
            "DARKROOM_REDIS_URL": _other_database(environment["DARKROOM_REDIS_URL"]),
            "DARKROOM_LOG_FORMAT": "json",
            "DARKROOM_TRACING": "true",
            "DARKROOM_METRICS_PORT": str(free_port()),
            "DARKROOM_METRICS_TOKEN": TOKEN,
            "DARKROOM_DISPATCH_INTERVAL": "PT0.2S",
            "OTEL_EXPORTER_OTLP_ENDPOINT": collector.url,
            "OTEL_BSP_SCHEDULE_DELAY": "100",
        }
        api = ApiProcess(own, free_port(), key, logs / "api.log")
        generate = WorkerProcess(own, ["generate", "--model", "sim"], logs / "generate.log")
        cpu = WorkerProcess(own, ["cpu"], logs / "cpu.log", module=QUICK_WORKER)
        with together(api, generate, cpu):
            engine = create_engine(with_driver(url))
            yield Observed(collector, api, generate, cpu, session_factory(engine), own)
            engine.dispose()
    # To the last line of their end.
    assert all(log_events(process) for process in (generate, cpu))
    assert all(process.log.read_bytes().endswith(b"\n") for process in (generate, cpu))


def _other_database(redis_url: str) -> str:
    return f"{redis_url.rpartition('/')[0]}/{_REDIS_DATABASE}"


def log_events(process: Process) -> list[dict[str, Any]]:
    """The log of a process, whose every line must be one event; the last may not be whole yet."""
    whole, _, _ = process.log.read_bytes().rpartition(b"\n")
    return [json.loads(line) for line in whole.decode("utf-8").splitlines()]
