"""Workers of a trial: started in a blink by the fork server, killed in every way there is."""

import json
import os
import signal
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

from tests import fork_server
from tests.processes import slowness, wait_until


class Worker:
    """One life of a worker process."""

    def __init__(self, process: fork_server.ForkedProcess, log: Path, offset: int) -> None:
        self._process = process
        self.pid = process.pid
        self.log = log
        self._offset = offset

    @property
    def alive(self) -> bool:
        """Whether the process exists (a stopped one does)."""
        return self._process.poll() is None

    def send(self, which: signal.Signals) -> None:
        """Send a signal, if it still lives."""
        self._process.send_signal(which)

    def kill(self) -> None:
        """SIGKILL, and wait for the end."""
        self.send(signal.SIGKILL)
        self.wait_gone(10)

    def wait_gone(self, seconds: float) -> None:
        """Wait for its end."""
        self._process.wait(seconds * slowness())

    def said(self) -> str:
        """What it has logged in this life."""
        with self.log.open("rb") as file:
            file.seek(self._offset)
            return file.read().decode("utf-8", "replace")

    def wait_for_log(self, text: str, seconds: float = 60.0) -> None:
        """Wait until it says something."""

        def heard() -> bool:
            if text in self.said():
                return True
            assert self.alive, f"the worker ended:\n{self.said()[-3000:]}"
            return False

        wait_until(heard, seconds, f"{text!r} in {self.log}")

    def wait_ready(self) -> None:
        """Wait until it consumes."""
        self.wait_for_log("worker_ready")


class Fleet:
    """Starts workers. A context manager: at its end none is left."""

    def __init__(self, folder: Path, environment: Mapping[str, str]) -> None:
        self._folder = folder
        self._environment = dict(environment)
        self._workers: list[Worker] = []

    def __enter__(self) -> Self:
        self._folder.mkdir(parents=True, exist_ok=True)
        return self

    def __exit__(self, *_: object) -> None:
        self.kill_all()

    def start(
        self, name: str, role: str = "generate", *, wait: bool = True, **options: Any
    ) -> Worker:
        """Start a worker of this name; `environment` and the options of `tests.chaos.entry`."""
        log = self._folder / f"{name}.log"
        log.touch()
        environment = {
            **os.environ,
            **self._environment,
            "DARKROOM_WORKER_NAME": name,
            **options.pop("environment", {}),
        }
        offset = log.stat().st_size
        process = fork_server.fork(
            "light", ["tests.chaos.entry", role, json.dumps(options)], environment, log
        )
        worker = Worker(process, log, offset)
        self._workers.append(worker)
        if wait:
            worker.wait_ready()
        return worker

    def kill_all(self) -> None:
        """SIGKILL to all that are left."""
        for worker in self._workers:
            worker.send(signal.SIGKILL)
        for worker in self._workers:
            worker.wait_gone(10)
        self._workers.clear()
