"""`make chaos`: run the trials, print the table, and write it into docs/reliability.md.

    python -m tests.chaos [--scale 0.5] [--only T1a T4 …] [--fresh]

Results are kept in `.darkroom/chaos/`, one JSON file for each trial, so that a run that was
interrupted goes on where it stopped; `--fresh` begins anew.
"""

import argparse
import json
import shutil
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from tests.chaos import broken, plain_celery, trials_job_store, trials_servers, trials_workers
from tests.chaos.report import table, write_report
from tests.chaos.result import Result
from tests.processes import PROJECT

RESULTS = PROJECT / ".darkroom" / "chaos"

Trial = Callable[[Path], Result | list[Result]]


def long_set(scale: float) -> dict[str, Trial]:
    """Every trial by name, with its N scaled."""

    def n(asked: int) -> int:
        return max(2, round(asked * scale))

    return {
        "T12": lambda _: trials_job_store.t12_random_histories(_, n(2000)),
        "T13": lambda _: trials_job_store.t13_races(_, n(3000)),
        "T1a": lambda _: trials_workers.t1_killed_and_restarted(_, n(200)),
        "T1b": lambda _: trials_workers.t1_killed_for_good(_, n(100)),
        "T2": lambda _: trials_workers.t2_killed_with_the_message(_, n(100)),
        "T3": lambda _: trials_workers.t3_zombies(_, n(200)),
        "T4": lambda _: trials_workers.t4_crash_points(_, n(50)),
        "T5": lambda _: trials_servers.t5_api_killed(_, n(100)),
        "T6flush": lambda _: trials_servers.t6_flushed(_, n(2000)),
        "T6kill": lambda _: trials_servers.t6_redis_killed(_, n(50)),
        "T6half": lambda _: trials_servers.t6_half_open(_, 60 * min(1.0, max(scale, 0.25))),
        "T6full": lambda _: trials_servers.t6_full(_, n(20)),
        "T6readonly": lambda _: trials_servers.t6_read_only(
            _, n(3), 20 * min(1.0, max(scale, 0.25))
        ),
        "T7commit": lambda _: trials_servers.t7_commit_cut(_, n(100)),
        "T7restart": lambda _: trials_servers.t7_restarts(_, n(100)),
        "T8": lambda _: trials_servers.t8_storage(_, 60 * min(1.0, max(scale, 0.25))),
        "T14": lambda _: trials_servers.t14_full_disk(_, n(10)),
        "T15": lambda _: trials_servers.t15_two_hosts(_, n(5), 20),
        "T9": lambda _: trials_workers.t9_poison(_, n(500)),
        "T10": lambda _: trials_workers.t10_wrong_clocks(_, n(100)),
        "T11": lambda _: trials_workers.t11_rolling_restart(_, n(20)),
        "plain": lambda _: plain_celery.compare(_, n(20)),
        "broken": broken.prove_the_checker_bites,
    }


def main() -> int:
    """Run what is asked for; the exit code says whether every invariant held."""
    parser = argparse.ArgumentParser(prog="python -m tests.chaos", description=__doc__)
    parser.add_argument("--scale", type=float, default=1.0, help="share of each trial's N")
    parser.add_argument("--only", nargs="+", metavar="TRIAL", help="names as in long_set")
    parser.add_argument("--fresh", action="store_true", help="forget earlier results")
    arguments = parser.parse_args()
    RESULTS.mkdir(parents=True, exist_ok=True)
    trials = long_set(arguments.scale)
    for name in arguments.only or trials:
        kept = RESULTS / f"{name}.json"
        if arguments.fresh or not kept.exists():
            run(name, trials[name], kept)
    found = load(trials)
    print(table(found))
    write_report(found, PROJECT / "docs" / "reliability.md")
    return 1 if any(result.violations for result in found) else 0


def run(name: str, trial: Trial, kept: Path) -> None:
    """One trial in a folder of its own; one that breaks is reported and tried again next time."""
    folder = Path(tempfile.mkdtemp(prefix=f"chaos-{name}-"))
    began = time.monotonic()
    try:
        found = trial(folder / "run")
    except Exception:
        print(f"{name} broke off; its logs are in {folder}", file=sys.stderr)
        traceback.print_exc()
        return
    results = found if isinstance(found, list) else [found]
    seconds = time.monotonic() - began
    for result in results:
        result.seconds = round(seconds / len(results), 1)
    kept.write_text(json.dumps([asdict(result) for result in results], indent=1))
    broken_ones = [violation for result in results for violation in result.violations]
    print(f"{name}: {seconds:.0f} s, {len(broken_ones)} violations", flush=True)
    if broken_ones:
        print(f"  its logs are in {folder}", *broken_ones[:10], sep="\n  ", flush=True)
    else:
        shutil.rmtree(folder, ignore_errors=True)


def load(trials: dict[str, Any]) -> list[Result]:
    """The results that are kept, in the order of the trials."""
    found = []
    for name in trials:
        kept = RESULTS / f"{name}.json"
        if kept.exists():
            found += [Result(**values) for values in json.loads(kept.read_text())]
    return found


if __name__ == "__main__":
    sys.exit(main())
