"""The examples of docs/cli.md, run as printed, give what is printed beneath them."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.processes import PROJECT

_EXAMPLE = re.compile(r"```sh\n(?P<script>.*?)```(?:\n```text\n(?P<answer>.*?)```)?", re.S)
_MARK = "=== next ==="


def program_folder(tmp_path: Path) -> Path:
    """A folder with the program, as an installation has it."""
    folder = tmp_path / "bin"
    folder.mkdir()
    program = folder / "darkroom"
    program.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m darkroom.cli "$@"\n')
    program.chmod(0o755)
    return folder


def pattern(printed: str) -> str:
    """What is printed, where `…` stands for anything on the way."""
    return ".*?".join(re.escape(part) for part in printed.strip().split("…"))


@pytest.mark.long
@pytest.mark.timeout(420)  # thirty starts of the program, one after the other
@pytest.mark.usefixtures("cpu_worker")
def test_the_examples_do_what_they_say(environ: dict[str, str], tmp_path: Path) -> None:
    examples = list(_EXAMPLE.finditer((PROJECT / "docs" / "cli.md").read_text("utf-8")))
    assert len(examples) > 5
    work = tmp_path / "work"
    work.mkdir()
    path = f"{program_folder(tmp_path)}:{os.environ['PATH']}"
    done = subprocess.run(
        [
            "bash",
            "-euo",
            "pipefail",
            "-c",
            f"\necho '{_MARK}'\n".join(e["script"] for e in examples),
        ],
        env={**os.environ, **environ, "PATH": path, "PYTHONPATH": str(PROJECT / "client")},
        cwd=work,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, f"{done.stdout[-2000:]}\n{done.stderr[-4000:]}"
    outputs = done.stdout.split(f"{_MARK}\n")
    assert len(outputs) == len(examples)
    for example, output in zip(examples, outputs, strict=True):
        if example["answer"] is not None:
            assert re.fullmatch(pattern(example["answer"]), output.strip(), re.S), (
                f"{example['script']}\ngave\n{output}"
            )
