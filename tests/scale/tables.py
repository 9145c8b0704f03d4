"""The tables of docs/scaling.md, from the measured rows: printed, and put between their markers."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from tests.pages import markdown
from tests.scale.model import Budget, Costs, Fleet, largest_fleet, loads

_MEASURED = {
    "regime": "GPU",
    "workers": "workers",
    "jobs_per_second": "jobs/s",
    "waiting_for_locks": "waiting for locks",
    "connections": "connections",
    "postgres_cpu_ms_per_job": "Postgres ms/job",
    "redis_commands_per_job": "Redis commands/job",
    "wal_kilobytes_per_job": "WAL kB/job",
    "machine_busy": "machine busy",
}
_LOADS = {
    "jobs_per_second": "jobs/s",
    "postgres_cores": "Postgres cores",
    "postgres_connections": "connections",
    "wal_megabytes_per_second": "WAL MB/s",
    "redis_share_of_a_core": "Redis, share of its core",
    "redis_commands_per_second": "Redis commands/s",
    "dispatcher_share_of_a_round": "dispatcher, share of a round",
}
_FLEETS = ((10, 1.0), (100, 1.0), (1000, 0.1), (1000, 1.0), (1000, 5.0))
_RATES = (0.1, 1.0, 5.0)


def tables(rows: Sequence[Mapping[str, Any]], scans: Mapping[str, float]) -> dict[str, str]:
    """By name: `measured`, and if a paced row and the scans are there, `model` and `stops`."""
    found = {"measured": _table(_MEASURED.values(), ([row[n] for n in _MEASURED] for row in rows))}
    paced = [row for row in rows if row["regime"] == "paced"]
    if paced and scans:
        costs = Costs.from_measurements(max(paced, key=lambda row: row["workers"]), scans)
        found["model"] = _model(costs)
        found["stops"] = _stops(costs)
    return found


def _model(costs: Costs) -> str:
    rows = []
    for gpus, rate in _FLEETS:
        found = loads(costs, Fleet(gpus=gpus, images_per_second=rate))
        rows.append([gpus, rate, *(found[name] for name in _LOADS)])
    return _table(["GPUs", "images/s each", *_LOADS.values()], rows)


def _stops(costs: Costs) -> str:
    rows = []
    for rate in _RATES:
        for budget, kind in (
            (Budget(), "as it is"),
            (Budget(postgres_connections=float("inf")), "however many connections"),
        ):
            gpus, part = largest_fleet(costs, rate, budget)
            rows.append([rate, kind, gpus, gpus * rate, part.replace("_", " ")])
    return _table(["images/s of a GPU", "", "GPUs", "jobs/s", "what gives way first"], rows)


def _table(head: Iterable[str], rows: Iterable[Sequence[Any]]) -> str:
    lines = markdown(list(head), ([_cell(cell) for cell in row] for row in rows))
    return "\n".join(lines) + "\n"


def _cell(value: Any) -> str:
    if not isinstance(value, float):
        return f"{value:,}" if isinstance(value, int) else str(value)
    if value == 0:
        return "0"
    if abs(value) >= 100:
        return f"{value:,.0f}"
    digits = 1 if abs(value) >= 10 else 2
    return f"{value:.{digits}f}" if abs(value) >= 0.005 else f"{value:.0e}"
