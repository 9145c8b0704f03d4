"""The table of docs/performance.md, from the rows of one whole run."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from tests.bench.row import Row
from tests.pages import markdown, put_into

PAGE = Path(__file__).resolve().parents[2] / "docs" / "performance.md"
_TOPICS = {
    "The engine": ("engine_rows",),
    "Jobs": (
        "queue_rows",
        "submit_rows",
        "waiting_rows",
        "storm_rows",
        "worker_rows",
        "encode_rows",
    ),
    "Batches, webhooks, estimates": ("batch_rows", "webhook_rows", "eta_rows"),
    "Search": ("search_rows",),
}


def write_page(measured: Mapping[str, Sequence[Row]]) -> None:
    """Put the rows, by their modules, between the marks of the page."""
    put_into(PAGE, {"measured": table(measured)})


def table(measured: Mapping[str, Sequence[Row]]) -> str:
    """How many goals hold, then the rows by topic, in Markdown."""
    rows = [row for found in measured.values() for row in found]
    held = sum(row["holds"] for row in rows)
    lines = [f"{held} of {len(rows)} goals hold in this run.", ""]
    for topic, modules in _TOPICS.items():
        cells = (_cells(row) for module in modules for row in measured[module])
        head = ("what", "measured", "goal", "against")
        lines += [f"**{topic}**", "", *markdown(head, cells), ""]
    return "\n".join(lines)


def _cells(row: Row) -> tuple[str, ...]:
    spread = ""
    if row["min"] != row["max"]:
        spread = f" ({_short(row['min'])} … {_short(row['max'])})"
    value = f"{_short(row['value'])}{spread} {row['unit']}"
    goal = row["goal"] if row["holds"] else f"{row['goal']}, **missed**"
    return row["name"], value, goal, row["baseline"]


def _short(value: float) -> str:
    """Three digits."""
    return f"{value:.0f}" if abs(value) >= 100 else f"{value:.3g}"
