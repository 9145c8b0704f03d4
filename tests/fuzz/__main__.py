"""`python -m tests.fuzz [--examples N]`: the whole fuzz against a system of its own."""

import argparse
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from deploy.local.servers import EmbeddedServers
from deploy.tenants import create_key
from migrations.commands import upgrade
from shared.core.tenants import RESOURCES
from tests.fuzz.contract import fuzz
from tests.fuzz.load import throw_images
from tests.processes import ApiProcess, WorkerProcess, free_port
from tests.unit.images import hostile

MODELS = Path(__file__).with_name("models.toml")
GOAL = 5000
"""Cases, at least."""
MEMORY_MB = 170
PHASES = {"examples,coverage,fuzzing": 1, "stateful": 8}
"""Phases that run together, and how many times the examples: a story is one example."""


@contextmanager
def running_system(folder: Path) -> Iterator[tuple[ApiProcess, tuple[str, str]]]:
    """Servers, API and workers in a folder, and a key for each of two tenants."""
    with EmbeddedServers(folder / "home", durable=False) as servers:
        upgrade(servers.database_url)
        one, two = (
            create_key(servers.database_url, tenant=name, name=name, scopes=RESOURCES)
            for name in ("one", "two")
        )
        environment = {
            **servers.environment(),
            "DARKROOM_MODELS_FILE": str(MODELS),
            "DARKROOM_LOG_FORMAT": "console",
            # A busy machine is no finding: 503 within 1.5 s is right for clients, and noise here.
            "DARKROOM_DATABASE_TIMEOUT": "PT20S",
        }
        with (
            ApiProcess(environment, free_port(), one, folder / "api.log") as api,
            WorkerProcess(environment, ["generate", "--model", "sim"], folder / "generate.log"),
            WorkerProcess(environment, ["cpu"], folder / "cpu.log"),
        ):
            yield api, (one, two)


def main() -> int:
    """Run all of it; 0 when nothing was found."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("--examples", type=int, default=60, help="cases an operation and phase")
    parser.add_argument("--seed", type=int, default=int(time.time()), help="default: the clock")
    options = parser.parse_args()
    failures = []
    with tempfile.TemporaryDirectory(prefix="darkroom-fuzz-") as name:
        folder = Path(name)
        with running_system(folder) as (api, keys):
            toll = throw_images(api, hostile.all_cases())
            print(f"{toll.answers.total()} hostile images: grew by {toll.grown_mb} MB at most, "
                  f"{dict(toll.answers)}")  # fmt: skip
            if toll.wrong or (toll.grown_mb or 0) > MEMORY_MB:
                failures.append("images")
            cases = 0
            for phases, factor in PHASES.items():
                examples = options.examples * factor
                found = fuzz(api, keys, folder, phases=phases, examples=examples, seed=options.seed)
                print(found.report, flush=True)
                cases += found.cases
                if not found.passed:
                    failures.append(phases)
            print(f"seed {options.seed}: {cases} cases")
            if cases < GOAL:
                failures.append(f"fewer than {GOAL} cases")
        log = (folder / "api.log").read_text()
        if "Traceback" in log:
            print(log[log.index("Traceback") - 2000 :][:8000])
            failures.append("a traceback in the API's log")
    print("failed: " + ", ".join(failures) if failures else "nothing found")
    return bool(failures)


if __name__ == "__main__":
    sys.exit(main())
