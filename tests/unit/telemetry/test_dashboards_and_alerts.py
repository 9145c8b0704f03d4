"""Dashboards, alerts and the autoscaler ask for nothing but what the code measures."""

import importlib
import json
import re
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import yaml
from prometheus_client import REGISTRY
from prometheus_client.metrics import MetricWrapperBase

from deploy.grafana.__main__ import file_of, text_of
from deploy.grafana.definitions import DASHBOARDS
from shared.core.model_catalog import load_catalog
from worker.core.metrics import WorkerMetrics
from worker.maintenance.backlog import BacklogMetrics

PROJECT = Path(__file__).resolve().parents[3]
ALERTS = PROJECT / "deploy" / "prometheus" / "alerts.yaml"
PAGE = PROJECT / "docs" / "observability.md"
SCALERS = sorted((PROJECT / "deploy" / "kubernetes").rglob("scaling.yaml"))

OF_THE_SCRAPE = {"instance", "job"}
"""Labels that Prometheus adds to everything."""
_SUFFIXES = {
    "counter": ("_total",),
    "gauge": ("",),
    "histogram": ("_bucket", "_sum", "_count"),
}
_SELECTION = re.compile(r"\b(darkroom_\w+)(?:\{([^}]*)\})?")
_MATCHER = re.compile(r'(\w+)\s*(?:=~|!~|!=|=)\s*"[^"]*"')
_GROUPING = re.compile(r"\b(?:by|on)\s*\(([^)]*)\)")


def modules_with_metrics() -> Iterator[ModuleType]:
    """Every module of the API and the workers that makes a metric."""
    for package in ("api", "shared", "worker"):
        for path in (PROJECT / package).rglob("*.py"):
            if "from prometheus_client import" in path.read_text("utf-8"):
                parts = path.relative_to(PROJECT).with_suffix("").parts
                yield importlib.import_module(".".join(parts).removesuffix(".__init__"))


def measured() -> dict[str, set[str]]:
    """Every series' name and its labels, from the code."""
    found: dict[str, set[str]] = {}

    def add(name: str, kind: str, labels: set[str]) -> None:
        for suffix in _SUFFIXES[kind]:
            le = {"le"} if suffix == "_bucket" else set()
            found[f"{name}{suffix}"] = labels | le

    for module in modules_with_metrics():
        for metric in vars(module).values():
            if isinstance(metric, MetricWrapperBase):
                add(metric._name, metric._type, set(metric._labelnames))
    catalog = load_catalog(PROJECT / "tests" / "models.toml")
    read_at_scrapes = (WorkerMetrics(dict), BacklogMetrics(catalog, None))  # type: ignore[arg-type]
    for collector in read_at_scrapes:
        for family in collector.describe():
            add(family.name, family.type, set(family._labelnames))  # type: ignore[attr-defined]
    return found


MEASURED = measured()


def complaints(query: str, legend: str = "") -> list[str]:
    """What a query names that there is not."""
    wrong = []
    selected: set[str] = set()
    for name, selector in _SELECTION.findall(query):
        labels = MEASURED.get(name)
        if labels is None:
            wrong.append(f"no metric {name}")
            continue
        selected |= labels
        wrong += [
            f"{name} has no label {label}"
            for label in _MATCHER.findall(selector)
            if label not in labels | OF_THE_SCRAPE
        ]
    if not _SELECTION.search(query):
        wrong.append("no metric at all")
    for group in [*_GROUPING.findall(query), ",".join(re.findall(r"\{\{\s*(\w+)\s*\}\}", legend))]:
        wrong += [
            f"no label {label.strip()}"
            for label in group.split(",")
            if label.strip() and label.strip() not in selected | OF_THE_SCRAPE
        ]
    return wrong


def alerts() -> Iterator[dict[str, Any]]:
    for group in yaml.safe_load(ALERTS.read_text("utf-8"))["groups"]:
        yield from group["rules"]


def anchors() -> set[str]:
    """The anchors of the page's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.+)$", PAGE.read_text("utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_the_check_finds_what_is_not_there() -> None:
    assert complaints('sum by (model) (darkroom_queue_jobs{lane="bulk"})', "{{model}}") == []
    assert complaints("rate(darkroom_nonsense_total[5m])") == ["no metric darkroom_nonsense_total"]
    assert complaints('darkroom_queue_jobs{tenant="a"}')
    assert complaints("sum by (tenant) (darkroom_queue_jobs)")
    assert complaints("darkroom_queue_jobs", "{{tenant}}")
    assert complaints("rate(darkroom_images[5m])") == ["no metric darkroom_images"]


@pytest.mark.parametrize("dashboard", DASHBOARDS, ids=lambda dashboard: dashboard.uid)
def test_a_dashboard_shows_what_is_measured(dashboard: Any) -> None:
    text = file_of(dashboard).read_text("utf-8")
    assert text == text_of(dashboard), "run python -m deploy.grafana"
    document = json.loads(text)
    assert len({panel["id"] for panel in document["panels"]}) == len(document["panels"])
    asked = 0
    for panel in document["panels"]:
        for target in panel.get("targets", ()):
            legend = target["legendFormat"].replace("__auto", "")
            assert complaints(target["expr"], legend) == [], panel["title"]
            asked += 1
    assert asked > 5


@pytest.mark.parametrize("alert", list(alerts()), ids=lambda alert: alert["alert"])
def test_an_alert_can_fire_and_says_what_to_do(alert: dict[str, Any]) -> None:
    assert complaints(alert["expr"], alert["annotations"]["summary"].replace("$labels.", "")) == []
    used = re.findall(r"\$labels\.(\w+)", alert["annotations"]["summary"])
    grouped = ",".join(_GROUPING.findall(alert["expr"]))
    assert all(label in grouped for label in used), "the summary names a label that is summed away"
    assert alert["labels"]["severity"] in ("page", "ticket")
    page, _, anchor = alert["annotations"]["runbook_url"].partition("#")
    assert PROJECT / page == PAGE
    assert anchor == alert["alert"].lower()
    assert anchor in anchors(), "the alert has no section in the runbook"


def test_the_autoscaler_asks_for_what_is_measured() -> None:
    assert SCALERS
    queries = [
        trigger["metadata"]["query"]
        for path in SCALERS
        for document in yaml.safe_load_all(path.read_text("utf-8"))
        if document and document.get("kind") == "ScaledObject"
        for trigger in document["spec"]["triggers"]
        if trigger["type"] == "prometheus"
    ]
    assert queries
    assert [complaint for query in queries for complaint in complaints(query)] == []


def test_every_metric_is_on_the_page() -> None:
    """With the name under which Prometheus knows it, so that a search for it leads there."""
    page = PAGE.read_text("utf-8")
    families = {re.sub(r"_(bucket|sum|count)$", "", name) for name in MEASURED}
    assert sorted(name for name in families if f"`{name}" not in page) == []


def test_names_follow_the_conventions() -> None:
    registered = [family for family in REGISTRY.collect() if family.name.startswith("darkroom_")]
    assert registered
    for family in registered:
        assert family.documentation.endswith("."), family.name
        if "duration" in family.name or "seconds" in family.name:
            assert family.name.endswith("_seconds"), family.name


def test_no_label_can_hold_what_is_a_tenants() -> None:
    private = {"tenant", "tenant_id", "key", "key_id", "session", "session_id", "prompt", "url"}
    private |= {"job_id", "batch_id", "path", "worker", "message"}
    assert {name for name, labels in MEASURED.items() if labels & private} == set()
