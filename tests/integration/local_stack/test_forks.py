"""Workers are forked by a process that has imported their libraries, and stand on their own."""

import json
import os
import signal
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import psutil
import pytest

from deploy.local.home import Home
from deploy.local.host import ServerFailedError
from deploy.local.process import ChildProcess, Program, last_lines
from deploy.local.workers import CAN_FORK, Libraries
from tests.processes import wait_until

pytestmark = pytest.mark.skipif(not CAN_FORK, reason="workers are started anew here")

LIBRARY = """
    import os

    def warm():
        global IMPORTED_BY
        IMPORTED_BY = os.getpid()
"""
PROGRAM = """
    import json, os, signal, sys, time
    import library

    def on_sigterm(*_):
        print("asked to stop", flush=True)
        sys.exit(7)

    signal.signal(signal.SIGTERM, on_sigterm)
    facts = {"by": library.IMPORTED_BY, "arguments": sys.argv[1:], "setting": os.environ["SETTING"]}
    print(json.dumps(facts), flush=True)
    while True:
        time.sleep(600)
"""
Fork = Callable[..., ChildProcess]


@pytest.fixture
def modules(tmp_path: Path) -> Path:
    """A folder with a library and a program."""
    (tmp_path / "library.py").write_text(textwrap.dedent(LIBRARY))
    (tmp_path / "program.py").write_text(textwrap.dedent(PROGRAM))
    return tmp_path


@pytest.fixture
def libraries(modules: Path, home: Path) -> Iterator[Libraries]:
    """A server that has imported the library."""
    environment = {**os.environ, "PYTHONPATH": str(modules), "SETTING": "of both"}
    with Home(home) as opened:
        server = Libraries(opened, environment, "library")
        server.start()
        yield server
        server.stop()


@pytest.fixture
def fork(libraries: Libraries, tmp_path: Path) -> Iterator[Fork]:
    """Starts the program as a fork."""
    with ExitStack() as stack:

        def start(name: str, *arguments: str) -> ChildProcess:
            program = Program(
                name=name,
                command=[sys.executable, "-m", "program", *arguments],
                environment={},
                log=tmp_path / f"{name}.log",
                record=tmp_path / f"{name}.json",
                fork=libraries.fork,
            )
            child = ChildProcess(program)
            stack.callback(child.kill)
            wait_until(lambda: said(child), what=f"a word of {name}")
            return child

        yield start


def said(child: ChildProcess) -> list[str]:
    return last_lines(child.program.log)


def test_a_fork_has_the_libraries_and_else_all_of_its_own(libraries: Libraries, fork: Fork) -> None:
    for name, arguments in (("one", ["cpu"]), ("two", ["generate", "--model"])):
        child = fork(name, *arguments)
        facts = json.loads(said(child)[0])
        assert facts == {"by": libraries.pid, "arguments": arguments, "setting": "of both"}
        process = psutil.Process(child.pid)
        assert process.ppid() == os.getpid()
        assert process.name() == name  # which `top` shows
        assert os.getsid(child.pid) == child.pid  # Ctrl-C does not reach it
        assert json.loads(child.program.record.read_text())["pid"] == child.pid


def test_how_a_fork_ends_is_known_and_concerns_no_other(fork: Fork) -> None:
    asked, killed, other = fork("asked"), fork("killed"), fork("other")
    asked.stop(10)
    assert said(asked)[1:] == ["asked to stop"]
    assert asked.exit_code == 7
    killed.kill()
    assert killed.exit_code == -signal.SIGKILL
    assert not killed.program.record.exists()
    assert other.running


def test_a_fork_outlives_its_server_and_the_next_has_a_new_one(
    libraries: Libraries, fork: Fork
) -> None:
    first, server = fork("first"), libraries.pid
    libraries.kill()
    with pytest.raises(ServerFailedError, match="late cannot be started"):
        fork("late")
    libraries.start()
    second = fork("second")
    assert libraries.pid != server
    assert json.loads(said(second)[0])["by"] == libraries.pid
    assert first.running


def test_a_server_that_does_not_answer_is_ended_and_replaced(
    libraries: Libraries, fork: Fork
) -> None:
    """Its answer would be taken for that to the next order."""
    assert libraries.pid is not None
    os.kill(libraries.pid, signal.SIGSTOP)
    libraries._socket.settimeout(0.2)
    with pytest.raises(ServerFailedError, match="late cannot be started"):
        fork("late")
    assert not libraries.running
    libraries.start()
    assert json.loads(said(fork("second"))[0])["by"] == libraries.pid


def test_libraries_that_cannot_be_imported_say_why(home: Path) -> None:
    with Home(home) as opened, pytest.raises(ServerFailedError, match="No module named 'absent'"):
        Libraries(opened, os.environ, "absent").start()


SUPERVISOR = """
    import os, signal, sys
    from pathlib import Path
    from deploy.local.home import Home
    from deploy.local.process import ChildProcess, Program
    from deploy.local.workers import Libraries

    folder = Path(sys.argv[1])
    libraries = Libraries(Home(folder / "home"), os.environ, "library")
    libraries.start()
    child = ChildProcess(
        Program("fork", [sys.executable, "-m", "program"], {}, folder / "fork.log",
        folder / "fork.json", fork=libraries.fork)
    )
    print(libraries.pid, child.pid, flush=True)
    signal.pause()
"""


def test_forks_are_asked_to_stop_when_their_supervisor_is_gone(modules: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": str(modules), "SETTING": ""}
    with subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(SUPERVISOR), str(modules)],
        env=environment,
        stdout=subprocess.PIPE,
        text=True,
    ) as supervisor:
        assert supervisor.stdout is not None
        processes = [psutil.Process(int(pid)) for pid in supervisor.stdout.readline().split()]
        log = modules / "fork.log"
        wait_until(lambda: log.exists() and log.read_text(), what="the fork")
        supervisor.kill()
    _, alive = psutil.wait_procs(processes, timeout=20)
    assert alive == []
    assert "asked to stop" in log.read_text()
