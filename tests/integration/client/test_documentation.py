"""The examples of the client's documentation, run as printed, print what is beneath them."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import MakeKey
from tests.processes import PROJECT, ApiProcess, WorkerProcess

pytestmark = pytest.mark.long

DOCS = PROJECT / "docs"
_BLOCK = re.compile(r"```(?P<language>\w+)\n(?P<text>.*?)```", re.S)
_NEXT = "=== next ==="
_SET_UP = (".venv/bin/activate",)
"""What sets a machine up; the tests run on one that is."""


@pytest.fixture(scope="module")
def surroundings(
    api: ApiProcess, generate_worker: WorkerProcess, searchable: None, make_key: MakeKey
) -> dict[str, str]:
    """The environment of a reader with a running system and a tenant that has nothing yet."""
    return {**os.environ, "DARKROOM_URL": api.url, "DARKROOM_API_KEY": make_key("readers")}


def blocks(page: str) -> list[tuple[str, str]]:
    """Language and text of each block of a page, in order."""
    text = (DOCS / page).read_text("utf-8")
    return [(found["language"], found["text"]) for found in _BLOCK.finditer(text)]


def run(program: list[str], folder: Path, environment: dict[str, str]) -> str:
    """What a program prints; it must succeed."""
    done = subprocess.run(
        program,
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=150,
        check=False,
    )
    assert done.returncode == 0, f"{done.stdout[-2000:]}\n{done.stderr[-4000:]}"
    return done.stdout


def assert_printed(expected: str, real: str, where: str) -> None:
    """`…` stands for anything, and for any number of lines where it is alone."""
    pattern = "".join(
        r"[\s\S]*" if line == "…" else re.escape(line).replace("…", ".*") + "\n"
        for line in expected.splitlines()
    )
    assert re.fullmatch(pattern, real), f"after\n{where}\ncame\n{real}\ninstead of\n{expected}"


@pytest.mark.parametrize("page", ["client.md", "quickstart.md", "tutorials/find-and-vary.md"])
def test_the_python_of_a_page_does_what_it_says(
    page: str, surroundings: dict[str, str], tmp_path: Path
) -> None:
    found = blocks(page)
    code = [text for language, text in found if language == "python"]
    script = tmp_path / "page.py"
    script.write_text(f"\nprint({_NEXT!r}, flush=True)\n".join(code))
    outputs = run([sys.executable, str(script)], tmp_path, surroundings).split(f"{_NEXT}\n")
    printed = iter(outputs)
    compared = 0
    for (language, text), (following, expected) in zip(found, [*found[1:], ("", "")], strict=True):
        if language != "python":
            continue
        output = next(printed)
        if following == "text":
            assert_printed(expected, output, text)
            compared += 1
    assert compared


def test_the_shell_of_the_quickstart_does_what_it_says(
    surroundings: dict[str, str], tmp_path: Path
) -> None:
    lines = ["set -euo pipefail", f'darkroom() {{ "{sys.executable}" -m darkroom.cli "$@"; }}']
    for language, text in blocks("quickstart.md"):
        if language == "sh":
            lines += text.splitlines()
    script = "\n".join(line for line in lines if not any(each in line for each in _SET_UP))
    output = run(["bash", "-c", script], tmp_path, surroundings)
    assert len(list((tmp_path / "images").glob("*.png"))) == 2
    assert "seed\t2\n" in output  # the receipt of the first image
    assert len(list((tmp_path / "hats").rglob("*.png"))) == 3
