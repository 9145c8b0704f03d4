"""Dashboards as data, and the JSON that Grafana reads (schema 39: Grafana 10 and later)."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

_COLUMNS = 24
_HEIGHT = 8
_SOURCE = {"type": "prometheus", "uid": "${source}"}

Unit = Literal["short", "s", "reqps", "ops", "percentunit", "bytes", "none"]


@dataclass(frozen=True)
class Line:
    """One query of a panel, and how its series are called (`{{label}}` stands for a label)."""

    query: str
    legend: str = ""


@dataclass(frozen=True)
class Panel:
    """A graph over time, or (`now`) the latest number."""

    title: str
    unit: Unit
    lines: Sequence[Line]
    help: str = ""
    width: int = 8
    now: bool = False
    """Whether the latest number is what counts."""
    alarming: float | None = None
    """From here on it is red."""
    stacked: bool = False


@dataclass(frozen=True)
class Row:
    """A heading and the panels below it."""

    title: str
    panels: Sequence[Panel]


@dataclass(frozen=True)
class Dashboard:
    """A page."""

    uid: str
    title: str
    description: str
    rows: Sequence[Row]


def to_json(dashboard: Dashboard) -> dict[str, Any]:
    """What Grafana reads from a file."""
    return {
        "uid": dashboard.uid,
        "title": dashboard.title,
        "description": dashboard.description,
        "tags": ["darkroom"],
        "schemaVersion": 39,
        "version": 1,
        "editable": True,
        "graphTooltip": 1,  # one crosshair over all panels
        "refresh": "30s",
        "time": {"from": "now-3h", "to": "now"},
        "templating": {"list": [_source_variable()]},
        "links": [
            {
                "type": "dashboards",
                "title": "Darkroom",
                "tags": ["darkroom"],
                "asDropdown": True,
                "keepTime": True,
            }
        ],
        "panels": _panels(dashboard.rows),
    }


def _source_variable() -> dict[str, Any]:
    return {
        "name": "source",
        "label": "Prometheus",
        "type": "datasource",
        "query": "prometheus",
        "current": {},
        "hide": 0,
    }


def _panels(rows: Sequence[Row]) -> list[dict[str, Any]]:
    made: list[dict[str, Any]] = []
    y = 0
    for row in rows:
        position = {"x": 0, "y": y, "w": _COLUMNS, "h": 1}
        made.append(
            {"id": len(made) + 1, "type": "row", "title": row.title, "gridPos": position}
            | {"collapsed": False, "panels": []}
        )
        x, y = 0, y + 1
        for panel in row.panels:
            if x + panel.width > _COLUMNS:
                x, y = 0, y + _HEIGHT
            position = {"x": x, "y": y, "w": panel.width, "h": _HEIGHT}
            made.append({"id": len(made) + 1, "gridPos": position, **_panel(panel)})
            x += panel.width
        y += _HEIGHT
    return made


def _panel(panel: Panel) -> dict[str, Any]:
    steps: list[dict[str, Any]] = [{"color": "green", "value": None}]
    if panel.alarming is not None:
        steps.append({"color": "red", "value": panel.alarming})
    defaults: dict[str, Any] = {
        "unit": panel.unit,
        "min": 0,
        "thresholds": {"mode": "absolute", "steps": steps},
    }
    if not panel.now:
        defaults["custom"] = {
            "fillOpacity": 20 if panel.stacked else 5,
            "showPoints": "never",
            "stacking": {"mode": "normal" if panel.stacked else "none", "group": "A"},
            "thresholdsStyle": {"mode": "off" if panel.alarming is None else "line"},
        }
    return {
        "type": "stat" if panel.now else "timeseries",
        "title": panel.title,
        "description": panel.help,
        "datasource": _SOURCE,
        "fieldConfig": {"defaults": defaults, "overrides": []},
        "options": {} if panel.now else {"tooltip": {"mode": "multi", "sort": "desc"}},
        "targets": [
            {
                "refId": chr(ord("A") + number),
                "datasource": _SOURCE,
                "expr": line.query,
                "legendFormat": line.legend or "__auto",
            }
            for number, line in enumerate(panel.lines)
        ],
    }
