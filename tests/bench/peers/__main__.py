"""`python -m tests.bench.peers`: Darkroom and its peers on the same work, interleaved.

Each cell is kept in .darkroom/bench-peers/results.json as soon as it is measured: a run that was
stopped goes on where it was, unless the code has changed since. docs/performance.md says what the
cells are.
"""

import argparse
import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Coroutine, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psycopg

from tests.bench.peers import cells, page, work
from tests.bench.peers.environments import Environments
from tests.bench.peers.systems import QUEUES, SERVING, Bench, Contender, Darkroom
from tests.bench.system import running_system
from tests.processes import PROJECT, slowness

_CELL_SECONDS = 300.0
_SYSTEMS = {system.name: system for system in (*SERVING, *QUEUES)}


@dataclass(frozen=True)
class Start:
    """One start of one system, and the cells to measure in it by their keys."""

    system: type[Contender]
    model: str
    repeat: int
    cells: dict[str, cells.Cell]


def plan(chosen: Sequence[str], repeats: int, known: set[str], names: set[str]) -> Iterator[Start]:
    """What is left to measure: every system once, then every system again."""
    for repeat in range(repeats):
        for model, all_cells in cells.CELLS.items():
            for system in QUEUES if model == "null" else SERVING:
                left = {
                    f"{system.name}/{name}/{repeat}": cell
                    for name, cell in all_cells.items()
                    if name in names and cells.IN_ONE_REPEAT.get(name, repeat) == repeat
                }
                left = {key: cell for key, cell in left.items() if key not in known}
                if left and system.name in chosen:
                    yield Start(system, model, repeat, left)


class Results:
    """The file of measured cells."""

    def __init__(self, path: Path, fresh: bool) -> None:
        self._path = path
        command = ["git", "-C", str(PROJECT), "rev-parse", "--short", "HEAD"]
        git = subprocess.run(command, check=False, capture_output=True, text=True)
        commit = git.stdout.strip() or "unknown"
        self.found: dict[str, Any] = {"commit": commit, "cells": {}}
        if path.exists() and not fresh:
            earlier = json.loads(path.read_text("utf-8"))
            if earlier["commit"] == commit:
                self.found = earlier
            else:
                print(f"{path} is of another commit: all is measured anew", file=sys.stderr)

    @property
    def known(self) -> set[str]:
        """The cells that need not be measured again; one that failed is tried again."""
        return {key for key, cell in self.found["cells"].items() if "error" not in cell}

    def add(self, key: str, cell: dict[str, Any]) -> None:
        """Keep a cell."""
        self.found["cells"][key] = cell
        self._path.write_text(json.dumps(self.found, indent=1) + "\n", "utf-8")
        print(f"{key}: {json.dumps(cell)}", flush=True)


def measure(bench: Bench, start: Start, size: cells.Size, results: Results) -> None:
    """Start a system, measure, stop it. A failure is kept as one and stops nothing else."""
    load = round(os.getloadavg()[0], 2)
    system = start.system(bench, start.model)
    key = next(iter(start.cells))
    try:
        system.start_api()
        if start.model != "null":
            system.start_worker()
            _run(cells.warm(system))
        for key, cell in start.cells.items():
            found = _run(cell(system, size, start.repeat))
            rounded = {what: round(value, 4) for what, value in found.items()}
            results.add(key, {**rounded, "load_before": load})
    except Exception as error:  # whatever a peer does
        results.add(key, {"error": f"{type(error).__name__}: {error}"[-2000:]})
    finally:
        system.stop()


def _run(cell: Coroutine[Any, Any, Any]) -> Any:
    return asyncio.run(asyncio.wait_for(cell, _CELL_SECONDS * slowness()))


def main() -> int:
    """Measure what is left; 1 if a cell failed."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench.peers", description=__doc__)
    parser.add_argument("systems", nargs="*", metavar="SYSTEM", help=f"of {', '.join(_SYSTEMS)}")
    parser.add_argument("--cells", nargs="+", metavar="CELL", help="only these")
    parser.add_argument("--repeats", type=int, default=3, metavar="N")
    parser.add_argument("--fresh", action="store_true", help="forget what was measured before")
    parser.add_argument("--docs", action="store_true", help="write the table into the docs")
    parser.add_argument(
        "--quick",
        action="store_true",
        help="small cells of Darkroom and the tutorial in this environment: it works at all",
    )
    options = parser.parse_args()
    if unknown := set(options.systems) - set(_SYSTEMS):
        parser.error(f"unknown: {', '.join(sorted(unknown))}")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # `finally` stops what was started
    home = Path(os.environ.get("DARKROOM_HOME", ".darkroom")).resolve() / "bench-peers"
    home.mkdir(parents=True, exist_ok=True)
    chosen, size, name = options.systems or list(_SYSTEMS), cells.Size(), "results.json"
    environments = Environments(home / "environments")
    every = {cell for group in cells.CELLS.values() for cell in group}
    if options.quick:
        chosen, size, name = ["darkroom", "tutorial"], cells.Size(window=4.0), "quick.json"
        environments, every, options.repeats = Environments(None), {"uniform"}, 1
    results = Results(home / name, options.fresh or options.quick)
    starts = list(plan(chosen, options.repeats, results.known, set(options.cells or every)))
    absent = set()
    for system in dict.fromkeys(start.system for start in starts if start.system is not Darkroom):
        try:
            environments.python(system.name)
        except subprocess.CalledProcessError as error:
            print(f"{system.name} cannot be installed and is left out: {error}", file=sys.stderr)
            absent.add(system)
    starts = [start for start in starts if start.system not in absent]
    began = time.monotonic()
    with (
        running_system() as servers,
        psycopg.connect(servers.environment["DARKROOM_DATABASE_URL"], autocommit=True) as database,
    ):
        environment = servers.environment
        environment["PEER_ERA"] = str(servers.folder / "era")
        environment["PEER_REDIS"] = environment["DARKROOM_REDIS_URL"].rpartition("/")[0] + "/3"
        os.environ.update({name: at for name, at in environment.items() if "S3" in name})
        database.execute(work.SCHEMA)
        bench = Bench(servers, environments, database)
        bench.next_era()
        for start in starts:
            measure(bench, start, size, results)
    print(f"{(time.monotonic() - began) / 60:.0f} minutes", file=sys.stderr)
    print(page.table(results.found))
    if options.docs:
        page.write(results.found)
    return int(bool(absent) or len(results.known) < len(results.found["cells"]))


if __name__ == "__main__":
    sys.exit(main())
