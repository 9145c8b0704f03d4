"""Dashboards, alerts and the autoscaler ask for nothing but what the code measures."""

import importlib
import json
import re
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import promql_parser
import pytest
import yaml
from prometheus_client import REGISTRY
from prometheus_client.metrics import MetricWrapperBase

from shared.core.model_catalog import load_catalog
from tests.pages import put_into
from tests.unit.deploy.chart import rendered
from worker.core.metrics import WorkerMetrics
from worker.maintenance.backlog import BacklogMetrics

PROJECT = Path(__file__).resolve().parents[3]
ALERTS = PROJECT / "deploy" / "prometheus" / "alerts.yaml"
DASHBOARDS = sorted((PROJECT / "deploy" / "grafana" / "dashboards").glob("*.json"))
COLUMNS = 24
PAGE = PROJECT / "docs" / "observability.md"

OF_THE_SCRAPE = {"instance", "job"}
"""Labels that Prometheus adds to everything."""
_SUFFIXES = {
    "counter": ("_total",),
    "gauge": ("",),
    "histogram": ("_bucket", "_sum", "_count"),
}
_PROCESSES = {
    "the API": ("api.",),
    "the leader, about the whole system": ("worker.maintenance.",),
    "workers": ("worker.core.", "worker.jobs."),
    "the API and workers": ("shared.",),
    "a backup that repeats": ("deploy.",),
}
"""Headings of the catalogue, and the packages whose metrics stand under each."""
_SELECTION = re.compile(r"\b(darkroom_\w+|up\b)(?:\{([^}]*)\})?")
_MATCHER = re.compile(r'(\w+)\s*(?:=~|!~|!=|=)\s*"[^"]*"')
_GROUPING = re.compile(r"\b(?:by|on)\s*\(([^)]*)\)")


def modules_with_metrics() -> Iterator[ModuleType]:
    """Every module that makes a metric."""
    for package in ("api", "deploy", "shared", "worker"):
        for path in (PROJECT / package).rglob("*.py"):
            if "from prometheus_client import" in path.read_text("utf-8"):
                parts = path.relative_to(PROJECT).with_suffix("").parts
                yield importlib.import_module(".".join(parts).removesuffix(".__init__"))


def described() -> Iterator[tuple[str, str, str, tuple[str, ...], str]]:
    """Every metric of the code: its module, name, kind, labels, and what it counts."""
    for module in modules_with_metrics():
        for metric in vars(module).values():
            if isinstance(metric, MetricWrapperBase):
                labels = tuple(metric._labelnames)
                yield module.__name__, metric._name, metric._type, labels, metric._documentation
    catalog = load_catalog(PROJECT / "tests" / "models.toml")
    read_at_scrapes = (WorkerMetrics(dict), BacklogMetrics(catalog, None))  # type: ignore[arg-type]
    for collector in read_at_scrapes:
        for family in collector.describe():
            labels = tuple(family._labelnames)  # type: ignore[attr-defined]
            module_name = type(collector).__module__
            yield module_name, family.name, family.type, labels, family.documentation


def measured() -> dict[str, set[str]]:
    """Every series' name and its labels, from the code."""
    found: dict[str, set[str]] = {}
    for _, name, kind, labels, _ in described():
        for suffix in _SUFFIXES[kind]:
            le = {"le"} if suffix == "_bucket" else set()
            found[f"{name}{suffix}"] = {*labels, *le}
    return found


def catalogue() -> str:
    """The page's list of metrics: under each process its own, with what `# HELP` says."""
    parts = []
    for title, modules in _PROCESSES.items():
        lines = [
            f"- `{name}{_SUFFIXES[kind][0] if kind == 'counter' else ''}"
            + (f"{{{','.join(labels)}}}" if labels else "")
            + f"`: {' '.join(text.split())}"
            for module, name, kind, labels, text in described()
            if module.startswith(modules)
        ]
        parts.append(f"From {title}:\n\n" + "\n".join(sorted(lines)) + "\n")
    return "\n".join(parts)


MEASURED = measured() | {"up": set()}
"""`up` is Prometheus's own."""


def complaints(query: str, legend: str = "") -> list[str]:
    """What a query names that there is not."""
    wrong = []
    selected: set[str] = set()
    try:
        promql_parser.parse(query.replace("$__rate_interval", "1m"))
    except ValueError as error:
        wrong.append(f"not PromQL: {error}")
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
    assert complaints('sum by (model) (darkroom_queue_jobs{queue_class="bulk"})', "{{model}}") == []
    assert complaints("rate(darkroom_nonsense_total[5m])") == ["no metric darkroom_nonsense_total"]
    assert complaints('darkroom_queue_jobs{tenant="a"}')
    assert complaints("sum by (tenant) (darkroom_queue_jobs)")
    assert complaints("darkroom_queue_jobs", "{{tenant}}")
    assert complaints("sum(rate(darkroom_redis_errors_total[5m])") == [
        "not PromQL: unclosed left parenthesis"
    ]
    assert complaints("rate(darkroom_images[5m])") == ["no metric darkroom_images"]


@pytest.mark.parametrize("path", DASHBOARDS, ids=lambda path: path.stem)
def test_a_dashboard_shows_what_is_measured(path: Path) -> None:
    panels = json.loads(path.read_text("utf-8"))["panels"]
    targets = [(panel, target) for panel in panels for target in panel.get("targets", ())]
    assert len(targets) > 5
    for panel, target in targets:
        legend = target["legendFormat"].replace("__auto", "")
        assert complaints(target["expr"], legend) == [], panel["title"]


@pytest.mark.parametrize("path", DASHBOARDS, ids=lambda path: path.stem)
def test_a_dashboard_loads_anywhere(path: Path) -> None:
    """Whatever Prometheus is called there, with every panel in a place of its own."""
    dashboard = json.loads(path.read_text("utf-8"))
    panels = dashboard["panels"]
    assert dashboard["uid"] == f"darkroom-{path.stem}"
    assert "id" not in dashboard, "an exported id belongs to one Grafana"
    assert [variable["name"] for variable in dashboard["templating"]["list"]] == ["source"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    places = [place for panel in panels for place in cells(panel["gridPos"])]
    assert len(set(places)) == len(places), "panels overlap"
    assert max(x for x, _ in places) < COLUMNS
    for panel in panels:
        for part in [panel, *panel.get("targets", ())] if panel["type"] != "row" else ():
            assert part["datasource"] == {"type": "prometheus", "uid": "${source}"}, panel["title"]


def cells(place: dict[str, int]) -> Iterator[tuple[int, int]]:
    """The cells of the grid that a panel takes."""
    for x in range(place["x"], place["x"] + place["w"]):
        for y in range(place["y"], place["y"] + place["h"]):
            yield x, y


def test_the_four_dashboards_are_there() -> None:
    assert [path.stem for path in DASHBOARDS] == ["api", "overview", "queue", "workers"]


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
    queries = [
        trigger["metadata"]["query"]
        for document in rendered("gpu")
        if document["kind"] == "ScaledObject"
        for trigger in document["spec"]["triggers"]
    ]
    assert queries
    assert [complaint for query in queries for complaint in complaints(query)] == []


def test_the_page_lists_every_metric() -> None:
    _, _, rest = PAGE.read_text("utf-8").partition("<!-- begin metrics -->\n")
    listed, _, _ = rest.partition("<!-- end metrics -->")
    assert listed == catalogue(), f"run python -m {__spec__.name}"
    assert sum(map(MEASURED.__contains__, re.findall(r"`(\w+)", listed))) > 20


def test_names_follow_the_conventions() -> None:
    registered = [family for family in REGISTRY.collect() if family.name.startswith("darkroom_")]
    assert registered
    for family in registered:
        assert family.documentation.endswith("."), family.name
        if "duration" in family.name or "seconds" in family.name:
            assert family.name.endswith("_seconds"), family.name


def test_no_label_is_one_that_prometheus_gives_a_meaning() -> None:
    reserved = {"le", "quantile", *OF_THE_SCRAPE}
    assert {name for _, name, _, labels, _ in described() if set(labels) & reserved} == set()
    assert not [name for _, name, _, labels, _ in described() if any(map(_is_hidden, labels))]


def _is_hidden(label: str) -> bool:
    """Prometheus drops labels with two underscores."""
    return label.startswith("__")


def test_no_label_can_hold_what_is_a_tenants() -> None:
    private = {"tenant", "tenant_id", "key", "key_id", "session", "session_id", "prompt", "url"}
    private |= {"job_id", "batch_id", "path", "worker", "message"}
    assert {name for name, labels in MEASURED.items() if labels & private} == set()


if __name__ == "__main__":
    put_into(PAGE, {"metrics": catalogue()})
