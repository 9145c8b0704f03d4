"""On a terminal: tables, colours unless they are not wanted, a bar that cleans up after itself."""

import os
import pty
import re
import subprocess
import sys
from pathlib import Path

from tests.processes import PROJECT

_COLOUR = re.compile(rb"\x1b\[[0-9;]*[34]\d[0-9;]*m")


def on_terminal(environ: dict[str, str], folder: Path, *arguments: str, **more: str) -> bytes:
    """What the program writes to a terminal of 120 columns, both of its outputs."""
    ours, theirs = pty.openpty()
    environment = {**os.environ, **environ, "COLUMNS": "120", "TERM": "xterm-256color", **more}
    environment["PYTHONPATH"] = str(PROJECT / "client")
    child = subprocess.Popen(
        [sys.executable, "-m", "darkroom.cli", *arguments],
        env=environment,
        cwd=folder,
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
    )
    os.close(theirs)
    said = b""
    while True:
        try:
            piece = os.read(ours, 65536)
        except OSError:  # Linux says that the other side is closed by an error
            piece = b""
        if not piece:
            break
        said += piece
    os.close(ours)
    assert child.wait(60) == 0, said.decode()
    return said


def test_a_list_is_a_table_in_colours_unless_told(environ: dict[str, str], tmp_path: Path) -> None:
    table = on_terminal(environ, tmp_path, "models")
    assert b"scheduler" in table
    assert "───".encode() in table
    assert _COLOUR.search(table)
    plain = on_terminal(environ, tmp_path, "models", NO_COLOR="1")
    assert b"scheduler" in plain
    assert not _COLOUR.search(plain)


def test_a_job_is_drawn_as_it_develops_and_shown(environ: dict[str, str], tmp_path: Path) -> None:
    arguments = ("generate", "a red circle", "--steps", "100", "--n", "8", "--out", "here")
    said = on_terminal(environ, tmp_path, *arguments, COLORTERM="truecolor")
    assert re.search(rb"step \d+ of 100", said)
    assert said.count("▀".encode()) > 8 * 16 * 16
    assert said.rfind(b"\x1b[?25h") > said.rfind(b"\x1b[?25l"), "the cursor stays hidden"
    assert len(list((tmp_path / "here").iterdir())) == 8


def test_the_shell_completes_what_the_server_has(environ: dict[str, str]) -> None:
    words = "darkroom generate --model "
    asked = {"_DARKROOM_COMPLETE": "complete_bash", "COMP_WORDS": words, "COMP_CWORD": "3"}
    done = subprocess.run(
        [sys.executable, "-m", "darkroom.cli"],
        env={**os.environ, **environ, **asked, "PYTHONPATH": str(PROJECT / "client")},
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    assert "sim" in done.stdout.split()
