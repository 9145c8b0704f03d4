"""The program `darkroom` against the running system: in this process, or as one of its own."""

import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from darkroom import Client
from darkroom.cli.app import app
from tests import fork_server
from tests.conftest import EVERY_SCOPE, MakeKey
from tests.processes import PROJECT, ApiProcess, WorkerProcess, slowness, wait_until

Darkroom = Callable[..., Result]

HELD = "held"
"""A model that no worker of these tests serves unless one starts it: its jobs stay queued."""


@pytest.fixture(scope="session")
def key(make_key: MakeKey) -> str:
    """A key of a tenant that only the tests of the command line use."""
    return make_key("terminals", [*EVERY_SCOPE, "operator"])


@pytest.fixture(autouse=True)
def often(monkeypatch: pytest.MonkeyPatch) -> None:
    """Who follows a batch in this process looks ten times a second."""
    for module in ("darkroom._sync.batches", "darkroom.cli.batch_run"):
        monkeypatch.setattr(f"{module}._POLL_SECONDS", 0.1)


@pytest.fixture
def environ(api: ApiProcess, generate_worker: WorkerProcess, key: str) -> dict[str, str]:
    """What the program finds in its environment."""
    return {"DARKROOM_URL": api.url, "DARKROOM_API_KEY": key, "COLUMNS": "200"}


@pytest.fixture
def client(environ: dict[str, str]) -> Iterator[Client]:
    """To see what the program has done."""
    with Client(environ["DARKROOM_URL"], environ["DARKROOM_API_KEY"]) as opened:
        yield opened


@pytest.fixture
def darkroom(environ: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Darkroom:
    """Run a command in this process, in an empty folder."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments: str | Path, stdin: str | None = None, **more: str) -> Result:
        words = [str(each) for each in arguments]
        return CliRunner().invoke(app, words, input=stdin, env={**environ, **more})

    return run


class Program:
    """`darkroom …` as a process of its own, with its two outputs in files."""

    def __init__(self, environ: dict[str, str], folder: Path, arguments: list[str]) -> None:
        self._out, self._err = folder / "stdout", folder / "stderr"
        for file in (self._out, self._err):
            file.touch()
        self.child = fork_server.fork(
            "light",
            ["darkroom.cli", *arguments],
            {**os.environ, **environ},
            self._out,
            errors=self._err,
            folder=folder,
        )

    @property
    def stdout(self) -> str:
        """What it has said so far."""
        return self._out.read_text("utf-8")

    @property
    def stderr(self) -> str:
        """What it has said beside."""
        return self._err.read_text("utf-8")

    def wait_for(self, condition: Callable[[], Any], what: str) -> Any:
        """Wait until something has come about, as long as it runs."""

        def look() -> Any:
            has_ended = self.child.poll() is not None  # before the look at what it did last
            found = condition()
            assert found or not has_ended, f"it ended:\n{self.stdout}\n{self.stderr}"
            return found

        return wait_until(look, 120, what)

    def end(self, how: signal.Signals | None = None) -> int:
        """Send a signal, if any; the exit code."""
        if how is not None:
            self.child.send_signal(how)
        return self.child.wait(180 * slowness())


@pytest.fixture
def program(environ: dict[str, str], tmp_path: Path) -> Iterator[Callable[..., Program]]:
    """Start the program; what still runs in the end is killed."""
    started: list[Program] = []

    def start(*arguments: str | Path) -> Program:
        folder = tmp_path / f"run-{len(started)}"
        folder.mkdir()
        environment = {**environ, "PYTHONPATH": str(PROJECT / "client")}
        started.append(Program(environment, folder, [str(each) for each in arguments]))
        return started[-1]

    yield start
    for each in started:
        if each.child.poll() is None:
            each.child.kill()
            each.child.wait()
