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

from tests.bench.system import running_system
from tests.pages import put_into
from tests.processes import PROJECT
from tests.scale.run import REGIMES, Bed
from tests.scale.scans import scan_costs
from tests.scale.tables import tables

DEFAULT_WORKERS = (1, 2, 4, 8, 16, 32)
DEFAULT_FILE = Path(".darkroom/scale.json")
DOCS = PROJECT / "docs" / "scaling.md"


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
        # Durable servers, as in production: a commit waits for the disk.
        with running_system() as system:
            bed = Bed(system)
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
    found = tables(rows, scans)
    print("\n".join(found.values()))
    if options.docs:
        put_into(DOCS, found)
    return 0


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.scale", description=__doc__)
    numbers = parser.add_argument("--workers", type=_numbers, default=DEFAULT_WORKERS)
    numbers.help = "default: " + ",".join(str(number) for number in DEFAULT_WORKERS)
    parser.add_argument("--regimes", nargs="+", choices=REGIMES, default=list(REGIMES))
    parser.add_argument("--seconds", type=float, default=12.0, help="of each window")
    parser.add_argument("--file", type=Path, default=DEFAULT_FILE)
    parser.add_argument("--fresh", action="store_true", help="measure everything anew")
    parser.add_argument("--docs", action="store_true", help="put the tables into docs/scaling.md")
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


if __name__ == "__main__":
    sys.exit(main())
