"""`python -m deploy.grafana`: write the dashboards' JSON from their definitions."""

import json
from pathlib import Path

from deploy.grafana.definitions import DASHBOARDS
from deploy.grafana.model import Dashboard, to_json

FOLDER = Path(__file__).with_name("dashboards")


def file_of(dashboard: Dashboard) -> Path:
    """Where a dashboard's JSON lies."""
    return FOLDER / f"{dashboard.uid.removeprefix('darkroom-')}.json"


def text_of(dashboard: Dashboard) -> str:
    """A dashboard's JSON."""
    return json.dumps(to_json(dashboard), indent=1) + "\n"


def main() -> None:
    """Write all of them."""
    FOLDER.mkdir(exist_ok=True)
    for dashboard in DASHBOARDS:
        file_of(dashboard).write_text(text_of(dashboard), "utf-8")


if __name__ == "__main__":
    main()
