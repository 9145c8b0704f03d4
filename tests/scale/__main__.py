"""`python -m tests.scale`: measure N workers against one Postgres and Redis, and show the model.

Goes on where an earlier run stopped: rows that are in the file are not measured again. It takes
about half a minute for each number of workers and each kind of GPU, and wants a quiet machine.
"""

import argparse
import json
import os
import sys
import time
from pathlib import Path
from typing import Any

from tests.scale.model import Costs, Fleet, loads
from tests.scale.run import REGIMES, running_bed
from tests.scale.scans import scan_costs

DEFAULT_WORKERS = (1, 2, 4, 8, 16, 32)
DEFAULT_FILE = Path(".darkroom/scale.json")


def main() -> int:
    """Measure what is missing, write it after each row, print the tables."""
    options = _parse()
    rows = [] if options.fresh or not options.file.exists() else _read(options.file)
    done = {(row["regime"], row["workers"]) for row in rows}
    wanted = [
        (regime, workers)
        for regime in options.regimes
        for workers in options.workers
        if (regime, workers) not in done
    ]
    scans = {} if options.fresh or not options.file.exists() else _read_scans(options.file)
    if wanted or not scans:
        with running_bed() as bed:
            for regime, workers in wanted:
                begun = time.monotonic()
                row = bed.measure(REGIMES[regime], workers, options.seconds).row()
                rows.append({**row, "load_average_before": round(os.getloadavg()[0], 2)})
                _write(options.file, rows, scans)
                took = time.monotonic() - begun
                rate = f"{row['jobs_per_second']:.1f} jobs/s"
                print(f"{regime} × {workers}: {rate} ({took:.0f} s)", file=sys.stderr)
            if not scans:
                scans = scan_costs(bed)
                _write(options.file, rows, scans)
    rows.sort(key=lambda row: (row["regime"], row["workers"]))
    _print_rows(rows)
    _print_model(rows, scans)
    return 0


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.scale", description=__doc__)
    numbers = parser.add_argument("--workers", type=_numbers, default=DEFAULT_WORKERS)
    numbers.help = "default: " + ",".join(str(number) for number in DEFAULT_WORKERS)
    parser.add_argument("--regimes", nargs="+", choices=REGIMES, default=list(REGIMES))
    parser.add_argument("--seconds", type=float, default=12.0, help="of each window")
    parser.add_argument("--file", type=Path, default=DEFAULT_FILE)
    parser.add_argument("--fresh", action="store_true", help="measure everything anew")
    return parser.parse_args()


def _numbers(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in text.split(","))


def _read(file: Path) -> list[dict[str, Any]]:
    return list(json.loads(file.read_text("utf-8"))["rows"])


def _read_scans(file: Path) -> dict[str, float]:
    return dict(json.loads(file.read_text("utf-8"))["scans"])


def _write(file: Path, rows: list[dict[str, Any]], scans: dict[str, float]) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    partial = file.with_suffix(".partial")
    partial.write_text(json.dumps({"rows": rows, "scans": scans}, indent=2) + "\n", "utf-8")
    partial.replace(file)


_COLUMNS = {
    "regime": "GPU",
    "workers": "workers",
    "jobs_per_second": "jobs/s",
    "missed_claims_per_job": "missed claims/job",
    "waiting_for_locks": "waiting for locks",
    "waiting_inside": "for latches",
    "connections": "connections",
    "postgres_cpu_ms_per_job": "Postgres ms/job",
    "redis_cpu_ms_per_job": "Redis ms/job",
    "redis_commands_per_job": "Redis commands/job",
    "wal_kilobytes_per_job": "WAL kB/job",
    "transactions_per_job": "transactions/job",
    "machine_busy": "machine busy",
    "load_average_before": "load before",
}


def _print_rows(rows: list[dict[str, Any]]) -> None:
    """Markdown, as docs/scaling.md has it."""
    print("| " + " | ".join(_COLUMNS.values()) + " |")
    print("|" + "---|" * len(_COLUMNS))
    for row in rows:
        cells = (row.get(name, "") for name in _COLUMNS)
        shown = (f"{cell:.3g}" if isinstance(cell, float) else str(cell) for cell in cells)
        print("| " + " | ".join(shown) + " |")


def _print_model(rows: list[dict[str, Any]], scans: dict[str, float]) -> None:
    paced = [row for row in rows if row["regime"] == "paced"]
    if not paced or not scans:
        return
    costs = Costs.from_measurements(max(paced, key=lambda row: row["workers"]), scans)
    print("\n| GPUs | pictures/s each | " + " | ".join(_NAMES.values()) + " |")
    print("|" + "---|" * (2 + len(_NAMES)))
    for gpus, rate in ((10, 1.0), (100, 1.0), (1000, 0.1), (1000, 1.0), (1000, 5.0)):
        found = loads(costs, Fleet(gpus=gpus, pictures_per_second=rate))
        cells = " | ".join(f"{found[name]:.3g}" for name in _NAMES)
        print(f"| {gpus} | {rate:g} | {cells} |")


_NAMES = {
    "jobs_per_second": "jobs/s",
    "postgres_cores": "Postgres cores",
    "postgres_connections": "connections",
    "wal_megabytes_per_second": "WAL MB/s",
    "redis_share_of_a_core": "Redis, share of its core",
    "redis_commands_per_second": "Redis commands/s",
    "dispatcher_share_of_a_round": "dispatcher, share of a round",
}


if __name__ == "__main__":
    sys.exit(main())
