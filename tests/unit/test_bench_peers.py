"""The comparison with peers: where a run goes on, what its page says, and a small real run."""

import json
import os
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
from packaging.requirements import Requirement

from tests.bench.peers.__main__ import Results, plan
from tests.bench.peers.environments import requirements_of
from tests.bench.peers.page import table
from tests.bench.peers.systems import QUEUES, SERVING, Contender
from tests.processes import PROJECT, wait_until


def test_systems_take_turns_and_measured_cells_are_left_out() -> None:
    names = {"mixed", "kill", "queue"}
    known = {"darkroom/mixed/0", "litserve/kill/0"}
    starts = list(plan(["darkroom", "litserve"], 2, known, names))
    assert [list(start.cells) for start in starts] == [
        ["darkroom/kill/0"],
        ["litserve/mixed/0"],
        ["darkroom/queue/0"],
        ["darkroom/mixed/1"],
        ["litserve/mixed/1"],
        ["darkroom/queue/1"],
    ]


def test_a_run_goes_on_and_tries_again_what_failed(tmp_path: Path) -> None:
    first = Results(tmp_path / "results.json", fresh=False)
    first.add("darkroom/mixed/0", {"images_per_s": 8.0})
    first.add("ray/mixed/0", {"error": "TimeoutError"})
    assert Results(tmp_path / "results.json", fresh=False).known == {"darkroom/mixed/0"}
    assert Results(tmp_path / "results.json", fresh=True).known == set()
    found = json.loads((tmp_path / "results.json").read_text())
    (tmp_path / "results.json").write_text(json.dumps({**found, "commit": "another"}))
    assert Results(tmp_path / "results.json", fresh=False).known == set()


def test_the_page_tells_the_best_what_is_late_what_failed_and_who_is_ahead() -> None:
    cells = {
        "darkroom/mixed/0": {"images_per_s": 8.0, "p95_s": 2.0, "late": 0.0, "load_before": 0.3},
        "darkroom/mixed/1": {"images_per_s": 9.0, "p95_s": 1.0, "late": 0.0},
        "litserve/mixed/0": {"images_per_s": 1.5, "p95_s": 10.0, "late": 0.8},
        "ray/mixed/0": {"error": "TimeoutError"},
        "darkroom/burst/0": {"images_per_s": 2.0, "alone_s": 1.0, "same": 1},
        "litserve/burst/0": {"images_per_s": 3.0, "alone_s": 1.0, "same": 0},
    }
    text = table({"commit": "abc", "cells": cells})
    assert "| **8.5** (8 … 9) | – | 1.5 | – | failed | – |" in text
    assert "| **1.5** (1 … 2) | – | ≥ 10 | – | failed | – |" in text
    assert "| same | – | differs | – | – | – |" in text
    assert "Ahead of Darkroom: demo model, a burst of 8, images/s (LitServe)." in text
    assert "load average before a start at most 0.3" in text
    assert "LitServe (litserve 0.2.19): `max_batch_size=8`" in text


@pytest.mark.parametrize("system", [*SERVING[1:], *QUEUES[2:]], ids=lambda system: system.name)
def test_every_version_of_a_peer_is_pinned(system: type[Contender]) -> None:
    first, *lines = requirements_of(system.name).read_text().splitlines()
    pins = {Requirement(line).name.lower(): str(Requirement(line).specifier) for line in lines}
    assert all(specifier.startswith("==") for specifier in pins.values())
    for named in first.removeprefix("# ").split(", "):
        name, version = named.split()
        assert pins[name] == f"=={version}"


@pytest.mark.long
@pytest.mark.timeout(900)
def test_it_measures_and_leaves_nothing_running(tmp_path: Path) -> None:
    environment = {**os.environ, "DARKROOM_HOME": str(tmp_path), "TMPDIR": str(tmp_path)}
    run = subprocess.run(
        [sys.executable, "-m", "tests.bench.peers", "--quick"],
        cwd=PROJECT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert run.returncode == 0, run.stdout + run.stderr
    found = json.loads((tmp_path / "bench-peers" / "quick.json").read_text())["cells"]
    assert {key for key, cell in found.items() if cell["images_per_s"] > 0} == {
        "darkroom/uniform/0",
        "tutorial/uniform/0",
    }
    assert "| simulated GPU, 20 steps each: images/s | " in run.stdout
    # What was killed is there until the kernel has taken it apart.
    wait_until(lambda: not left_running(tmp_path), 20, f"the end of {left_running(tmp_path)}")


def left_running(folder: Path) -> list[psutil.Process]:
    return [it for it in psutil.process_iter(["environ"]) if _is_of(it, folder)]


def _is_of(process: psutil.Process, folder: Path) -> bool:
    return (process.info["environ"] or {}).get("DARKROOM_HOME") == str(folder)
