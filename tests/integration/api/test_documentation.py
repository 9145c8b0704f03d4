"""The examples of docs/http-api.md, run as printed, give what is printed beneath them."""

import json
import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from tests.processes import PROJECT, ApiProcess, WorkerProcess

_EXAMPLE = re.compile(
    r"```sh\n(?P<script>.*?)```\n```(?P<kind>json|text)\n(?P<answer>.*?)```", re.S
)


class Example(NamedTuple):
    """A script of the documentation, and the answer printed beneath it."""

    script: str
    kind: str
    answer: str


def examples() -> list[Example]:
    text = (PROJECT / "docs" / "http-api.md").read_text("utf-8")
    found = [Example(**match.groupdict()) for match in _EXAMPLE.finditer(text)]
    assert len(found) == text.count("```sh"), "an example has no answer beneath it"
    return found


def run_all(found: list[Example], folder: Path, environment: dict[str, str]) -> list[str]:
    """Run the scripts one after the other in one shell, as a reader would; their outputs."""
    mark = "=== next ==="
    script = f"\necho '{mark}'\n".join(example.script for example in found)
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", script],
        env={**os.environ, **environment},
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, f"{done.stdout[-2000:]}\n{done.stderr}"
    return done.stdout.split(f"{mark}\n")


def assert_same_shape(printed: Any, real: Any, where: str) -> None:
    """Whatever is printed is there, of the same type; lists are compared by their first entry."""
    if isinstance(printed, dict):
        assert isinstance(real, dict), where
        for name, value in printed.items():
            assert name in real, f"{where}.{name} is printed but not there"
            assert_same_shape(value, real[name], f"{where}.{name}")
    elif isinstance(printed, list):
        assert isinstance(real, list), where
        assert bool(printed) == bool(real), where
        if printed:
            assert_same_shape(printed[0], real[0], f"{where}[0]")
    else:
        assert type(printed) is type(real), f"{where}: {printed!r} is printed, {real!r} came"


FIXED = {"state", "verdict", "kind", "code", "status", "seed", "seeds", "pointer", "stored"}
"""Fields whose printed value must be the real one, not just its type."""


def fixed_values(document: Any) -> list[tuple[str, Any]]:
    if isinstance(document, dict):
        own = [(name, value) for name, value in document.items() if name in FIXED]
        return own + [pair for value in document.values() for pair in fixed_values(value)]
    return (
        [pair for value in document[:1] for pair in fixed_values(value)]
        if isinstance(document, list)
        else []
    )


@pytest.mark.skipif(shutil.which("curl") is None, reason="the examples use curl")
def test_the_examples_do_what_they_say(
    api: ApiProcess, generate_worker: WorkerProcess, tmp_path: Path
) -> None:
    found = examples()
    environment = {"DARKROOM_URL": api.url, "DARKROOM_API_KEY": api.key}
    outputs = run_all(found, tmp_path, environment)
    for example, output in zip(found, outputs, strict=True):
        if example.kind == "text":
            assert output.strip() == example.answer.strip(), example.script
            continue
        printed, real = json.loads(example.answer), json.loads(output)
        assert_same_shape(printed, real, "answer")
        there = fixed_values(real)
        for pair in fixed_values(printed):
            assert pair in there, f"{pair} is printed, but not in the answer to:\n{example.script}"
