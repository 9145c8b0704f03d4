"""A real Prometheus scrapes a running system; every expression that we ship is asked of it."""

import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest
import yaml

from tests.integration.telemetry.conftest import TOKEN, Observed
from tests.processes import PROJECT, ApiProcess, Process, free_port, wait_until
from tests.receiver import Receiver
from tests.unit.deploy.chart import rendered

_NOTHING_TO_SHOW = (
    "Failed attempts by cause"  # none failed
    "|Memory of the device"  # it is a CPU
    "|Actual over estimated time|Jobs done by their estimate"  # which need more jobs than these
)
PROMETHEUS = shutil.which("prometheus")
ALERTS = PROJECT / "deploy" / "prometheus" / "alerts.yaml"
DASHBOARDS = sorted((PROJECT / "deploy" / "grafana" / "dashboards").glob("*.json"))

pytestmark = [
    pytest.mark.long,
    pytest.mark.timeout(900),
    pytest.mark.skipif(PROMETHEUS is None, reason="Prometheus was not tried: it is not on PATH"),
]


class Prometheus(Process):
    """Prometheus over the observed processes, with our alerts."""

    def __init__(self, observed: Observed, folder: Path) -> None:
        url = f"127.0.0.1:{free_port()}"
        self.http = httpx2.Client(base_url=f"http://{url}", timeout=70, trust_env=False)
        (folder / "token").write_text(TOKEN, "utf-8")
        backup_port = free_port()
        jobs = {
            "darkroom-api": [_address(observed, observed.api)],
            "darkroom-worker": [_address(observed, e) for e in (observed.generate, observed.cpu)],
            "darkroom-backup": [f"127.0.0.1:{backup_port}"],
        }
        self.backup = Process(
            {**observed.environment, "DARKROOM_METRICS_PORT": str(backup_port)},
            ["-m", "deploy.backup", "save", str(folder / "backup"), "--every=P1D"],
            folder / "backup.log",
        )
        configuration = {
            "global": {"scrape_interval": "1s", "evaluation_interval": "1s"},
            "rule_files": [str(ALERTS)],
            "scrape_configs": [
                {
                    "job_name": name,
                    "authorization": {"credentials_file": str(folder / "token")},
                    "static_configs": [{"targets": targets}],
                }
                for name, targets in jobs.items()
            ],
        }
        (folder / "prometheus.yml").write_text(yaml.safe_dump(configuration), "utf-8")
        super().__init__({}, [], folder / "prometheus.log")
        self._arguments = [
            str(PROMETHEUS),
            f"--config.file={folder / 'prometheus.yml'}",
            f"--storage.tsdb.path={folder / 'data'}",
            f"--web.listen-address={url}",
        ]

    def get(self, path: str, **parameters: str) -> Any:
        """The data of an answer of its API."""
        answer = self.http.get(f"/api/v1/{path}", params=parameters)
        assert answer.status_code == 200, f"{parameters}: {answer.text}"
        return answer.json()["data"]

    def ask(self, expression: str) -> list[Any]:
        """The samples of an expression, as a panel of five minutes' width asks for them."""
        found: list[Any] = self.get("query", query=expression.replace("$__rate_interval", "1m"))[
            "result"
        ]
        return [sample for sample in found if sample["value"][1] != "NaN"]

    def is_up(self) -> bool:
        """Whether every target has been scraped twice, so that rates can be had."""
        try:
            if self.http.get("/-/ready").status_code != 200:
                return False
        except httpx2.TransportError:
            return False
        return len(self.ask("count_over_time(up[1m]) > 3 and up == 1")) == 4


def _address(observed: Observed, process: Process) -> str:
    url = process.url if isinstance(process, ApiProcess) else str(observed.scrape(process).url)
    return url.removeprefix("http://").removesuffix("/metrics")


@pytest.fixture(scope="module")
def prometheus(
    observed: Observed, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Prometheus]:
    """Scraping since before some of everything happened."""
    server = Prometheus(observed, tmp_path_factory.mktemp("prometheus"))
    server.backup.start()
    server.start()
    try:
        wait_until(server.is_up, 60, "the first scrapes")
        wait_until(lambda: _is_measured(server, observed), 60, "rates of what was done")
        yield server
    finally:
        server.http.close()
        server.stop()
        server.backup.stop()


_RATES = (
    'darkroom_job_run_seconds_count{model="sim",outcome="succeeded"}',
    'darkroom_search_seconds_count{stage="whole"}',
    'darkroom_http_request_seconds_count{method="POST",route="/v1/jobs"}',
    'darkroom_webhook_attempts_total{outcome="delivered"}',
    "darkroom_webhook_attempt_seconds_count",
    "darkroom_http_problems_total",
)


def _is_measured(server: Prometheus, observed: Observed) -> bool:
    """Do some of everything; whether it shows."""
    _do_some_of_everything(observed)
    return all(server.ask(f"increase({series}[1m]) > 0") for series in _RATES) and bool(
        server.ask("darkroom_backup_last_success_timestamp_seconds > 0")
    )


def _do_some_of_everything(observed: Observed) -> None:
    http = observed.api.http
    with Receiver() as receiver:
        webhook = {"url": receiver.url, "events": ["job.succeeded"]}
        wanted = {"prompt": "a measured house", "model": "sim", "webhook": webhook}
        for _ in range(3):
            done = http.post("/v1/jobs", json=wanted, headers={"Prefer": "wait=60"}).json()
            assert done["state"] == "succeeded", done
        assert http.post("/v1/jobs", json=wanted).status_code == 202  # one that is timed
        receiver.wait(4)  # a delivery that finds nobody would be a failure
    assert http.get("/v1/search", params={"q": "a measured house"}).status_code == 200
    assert http.get("/v1/jobs/job_of_nobody").status_code in (404, 422)


def _panels() -> Iterator[tuple[str, str]]:
    for path in DASHBOARDS:
        for panel in json.loads(path.read_text("utf-8"))["panels"]:
            for number, target in enumerate(panel.get("targets", ())):
                yield f"{path.stem}: {panel['title']} ({number})", target["expr"]


def test_every_panel_is_answered(prometheus: Prometheus) -> None:
    """None with an error, and none without data but those that have a reason."""
    empty = {name for name, expression in _panels() if not prometheus.ask(expression)}
    assert {name for name in empty if not re.search(_NOTHING_TO_SHOW, name)} == set()


def test_every_alert_is_evaluated_and_quiet(prometheus: Prometheus) -> None:
    groups = prometheus.get("rules")["groups"]
    rules = {rule["name"]: rule for group in groups for rule in group["rules"]}
    shipped = yaml.safe_load(ALERTS.read_text("utf-8"))["groups"]
    assert set(rules) == {rule["alert"] for group in shipped for rule in group["rules"]}
    assert {name: rule["lastError"] for name, rule in rules.items() if "lastError" in rule} == {}
    assert {name for name, rule in rules.items() if rule["state"] != "inactive"} == set()


def test_every_alert_has_something_to_compare(prometheus: Prometheus) -> None:
    """Without its threshold it finds series: none waits for what nobody measures."""
    groups = yaml.safe_load(ALERTS.read_text("utf-8"))["groups"]
    for rule in (rule for group in groups for rule in group["rules"]):
        compared = re.sub(r"absent\((.*)\)", r"\1", rule["expr"].partition(" unless ")[0])
        left = re.sub(r"\s*(?:[<>]=?|==)\s*[\d.]+\s*$", "", compared)
        assert prometheus.get("query", query=left)["result"], f"{rule['alert']}: {left}"


def test_every_scaler_gets_a_number(prometheus: Prometheus) -> None:
    """KEDA wants exactly one, also while nothing waits."""
    groups = "--set=generateWorkers.generate-worker.models={sim}"
    triggers = [
        trigger["metadata"]["query"]
        for document in rendered("gpu", groups)
        if document["kind"] == "ScaledObject"
        for trigger in document["spec"]["triggers"]
    ]
    assert triggers
    for query in triggers:
        assert 'model=~"sim"' in query
        assert len(prometheus.ask(query)) == 1, query
