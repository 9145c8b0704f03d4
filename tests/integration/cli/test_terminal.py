"""On a terminal: tables, colours unless they are not wanted, a bar that cleans up after itself."""

import json
import os
import pty
import re
import select
import signal
import subprocess
import sys
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

from darkroom import Client
from tests import fork_server
from tests.integration.api.relay import Mode, Relay
from tests.integration.cli.conftest import HELD, Darkroom
from tests.processes import PROJECT, WorkerProcess, slowness

_COLOUR = re.compile(rb"\x1b\[[0-9;]*[34]\d[0-9;]*m")


def on_terminal(
    environ: dict[str, str],
    folder: Path,
    *arguments: str,
    until: Callable[[bytes], bool] = lambda _: False,
    **more: str,
) -> bytes:
    """What the program writes to a terminal of 120 columns, both of its outputs.

    Once it has written what `until` waits for, it gets a Ctrl-C.
    """
    ours, theirs = pty.openpty()
    environment = {**os.environ, **environ, "COLUMNS": "120", "TERM": "xterm-256color", **more}
    environment["PYTHONPATH"] = str(PROJECT / "client")
    terminal = Path(os.ttyname(theirs))
    command = ["darkroom.cli", *arguments]
    child = fork_server.fork("light", command, environment, terminal, folder=folder)
    said, is_over = b"", False
    while True:
        has_ended = child.poll() is not None  # before the look at its last words
        if select.select([ours], [], [], 0 if has_ended else 0.05)[0]:
            said += os.read(ours, 65536)
        elif has_ended:
            break
        if not is_over and until(said):
            is_over = True
            child.send_signal(signal.SIGINT)
    os.close(ours)
    os.close(theirs)
    assert child.wait() == 0, said.decode()
    return said


def test_a_list_is_a_table_in_colours_unless_told(environ: dict[str, str], tmp_path: Path) -> None:
    table = on_terminal(environ, tmp_path, "models")
    assert b"scheduler" in table
    assert "───".encode() in table
    assert _COLOUR.search(table)
    plain = on_terminal(environ, tmp_path, "models", NO_COLOR="1")
    assert b"scheduler" in plain
    assert not _COLOUR.search(plain)


def test_lists_are_tables_on_eighty_columns(
    environ: dict[str, str], client: Client, tmp_path: Path
) -> None:
    client.generate("a lake with reeds and boats, purple mountains behind it, at sunset")
    for words in ("jobs list", "models", "workers list", "keys list", "history default"):
        shown = on_terminal(environ, tmp_path, *words.split(), COLUMNS="80", NO_COLOR="1")
        lines = re.sub(r"\x1b\[[0-9;]*m|\r", "", shown.decode()).splitlines()
        assert "───" in lines[1], f"{words}: {lines}"
        assert max(map(len, lines)) <= 80, words


def test_a_job_is_drawn_as_it_develops_and_shown(
    environ: dict[str, str], generate_worker: WorkerProcess, tmp_path: Path
) -> None:
    arguments = ("generate", "a red circle", "--steps", "100", "--n", "16", "--out", "here")
    with ExitStack() as beginning:
        beginning.enter_context(generate_worker.frozen())  # until the job is followed

        def begin(said: bytes) -> bool:
            if b"queued" in said:
                beginning.close()
            return False

        said = on_terminal(environ, tmp_path, *arguments, until=begin, COLORTERM="truecolor")
    assert re.search(rb"step \d+ of 100", said)
    assert said.count("▀".encode()) > 16 * 16 * 16
    assert said.rfind(b"\x1b[?25h") > said.rfind(b"\x1b[?25l"), "the cursor stays hidden"
    assert len(list((tmp_path / "here").iterdir())) == 16


def test_watching_shows_what_is_going_on_until_ctrl_c(
    environ: dict[str, str], client: Client, tmp_path: Path
) -> None:
    client.generate("a lake that was made before")
    job = client.jobs.submit("a [red]hat[/red] that waits", model=HELD)
    marks = [job.id.encode(), b"Workers", b"Latest images", "▀".encode(), b"[red]hat[/red] that"]

    def is_complete(said: bytes) -> bool:
        return said.count(b"\x1b[H") > 2 and all(mark in said for mark in marks)

    terminal = {"COLUMNS": "120", "LINES": "40", "COLORTERM": "truecolor"}
    said = on_terminal(environ, tmp_path, "watch", until=is_complete, **terminal)
    job.cancel()
    assert b"Traceback" not in said
    assert said.rfind(b"\x1b[?1049l") > said.rfind(b"\x1b[?1049h"), "the screen is given back"
    assert said.rfind(b"\x1b[?25h") > said.rfind(b"\x1b[?25l"), "the cursor stays hidden"


def test_watching_outlives_a_server_that_is_away(
    environ: dict[str, str], client: Client, tmp_path: Path
) -> None:
    (image,) = client.generate("a lake before the server went away")
    relay = Relay(environ["DARKROOM_URL"])
    outage = ExitStack()
    states = ["shown", "away", "back"]

    def is_back(said: bytes) -> bool:
        frame = said.split(b"\x1b[H")[-2] if said.count(b"\x1b[H") > 1 else b""
        is_away = b"got no answer" in frame
        if states[0] == "shown" and str(image.job_id).encode() in frame:
            states.pop(0)
            outage.enter_context(relay.set_to(Mode.REFUSE))
        elif states[0] == "away" and is_away:
            states.pop(0)
            outage.close()
        return states == ["back"] and not is_away

    through = {**environ, "DARKROOM_URL": relay.url, "LINES": "40"}
    said = on_terminal(through, tmp_path, "watch", "--interval", "0.3", until=is_back)
    relay.close()
    assert b"Traceback" not in said


def test_one_look_is_a_page_on_a_terminal_and_lines_in_a_pipe(
    environ: dict[str, str], darkroom: Darkroom, client: Client, api_key: str, tmp_path: Path
) -> None:
    (image,) = client.generate("a lake\tof one look")
    page = on_terminal(environ, tmp_path, "watch", "--once", "--preview", "off", COLUMNS="80")
    assert b"Latest images" in page
    assert "▀".encode() not in page
    lines = [line.split("\t") for line in darkroom("watch").stdout.splitlines()]
    assert {line[0] for line in lines} == {"queue", "worker", "job"}
    assert ["job", image.job_id, "succeeded", "100%", "a lake of one look"] in lines
    seen = json.loads(darkroom("watch", "--json").stdout)
    assert image.job_id in [job["id"] for job in seen["jobs"]]
    # A key without the operator's scope sees its own jobs.
    own = json.loads(darkroom("watch", "--json", DARKROOM_API_KEY=api_key).stdout)
    assert (own["queues"], own["workers"]) == (None, None)
    assert image.job_id not in [job["id"] for job in own["jobs"]]


_PATIENTLY = """
import runpy
from darkroom.cli import options
options._COMPLETION_SECONDS = 60.0  # nobody has pressed Tab
runpy.run_module("darkroom.cli", run_name="__main__")
"""


def test_the_shell_completes_what_the_server_has(environ: dict[str, str]) -> None:
    words = "darkroom generate --model "
    asked = {"_DARKROOM_COMPLETE": "complete_bash", "COMP_WORDS": words, "COMP_CWORD": "3"}
    done = subprocess.run(
        [sys.executable, "-c", _PATIENTLY],
        env={**os.environ, **environ, **asked, "PYTHONPATH": str(PROJECT / "client")},
        capture_output=True,
        text=True,
        check=True,
        timeout=60 * slowness(),
    )
    assert "sim" in done.stdout.split()
