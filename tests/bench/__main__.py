"""`python -m tests.bench [MODULE …]`: run the benchmarks, print a table, write bench.json."""

import argparse
import importlib
import json
import os
import sys
import time
from pathlib import Path

from rich.console import Console
from rich.table import Table

from tests.bench.page import write_page
from tests.bench.row import Row

MODULES = (
    "encode_rows",
    "engine_rows",
    "queue_rows",
    "submit_rows",
    "waiting_rows",
    "storm_rows",
    "worker_rows",
    "batch_rows",
    "webhook_rows",
    "search_rows",
    "eta_rows",
)


def main() -> int:
    """Run the chosen modules; exit 1 if a row misses its goal, so that a script can tell."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench", description=__doc__)
    parser.add_argument("modules", nargs="*", help=f"of {', '.join(MODULES)} (default: all)")
    parser.add_argument(
        "--docs", action="store_true", help="put the table of a whole run into docs/performance.md"
    )
    arguments = parser.parse_args()
    if arguments.docs and arguments.modules:
        parser.error("--docs wants a whole run")
    measured: dict[str, list[Row]] = {}
    for name in arguments.modules or MODULES:
        started = time.monotonic()
        module = importlib.import_module(f"tests.bench.{name}")
        for row in module.rows():
            measured.setdefault(name, []).append(row)
            mark = "holds" if row["holds"] else "MISSED"
            print(f"{row['name']}: {row['value']:g} {row['unit']} ({row['goal']}, {mark})")
        print(f"-- {name}: {time.monotonic() - started:.0f} s", file=sys.stderr)
    rows = [row for found in measured.values() for row in found]
    _print_table(rows)
    _write(rows)
    if arguments.docs:
        write_page(measured)
    return 0 if all(row["holds"] for row in rows) else 1


def _print_table(rows: list[Row]) -> None:
    table = Table("what", "value", "goal", "", "spread", "against")
    for row in rows:
        table.add_row(
            row["name"],
            f"{row['value']:g} {row['unit']}",
            row["goal"],
            "✓" if row["holds"] else "✗",
            f"{row['min']:g} … {row['max']:g}",
            row["baseline"],
        )
    Console().print(table)


def _write(rows: list[Row]) -> None:
    home = Path(os.environ.get("DARKROOM_HOME", ".darkroom"))
    home.mkdir(exist_ok=True)
    path = home / "bench.json"
    path.write_text(json.dumps(rows, indent=2) + "\n", "utf-8")
    print(f"written to {path}")


sys.exit(main())
