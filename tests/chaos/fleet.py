"""Workers of a trial: started in a blink by the zygote, killed in every way there is."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from tests.processes import PROJECT, wait_until


class Worker:
    """One life of a worker process."""

    def __init__(self, pid: int, log: Path, offset: int) -> None:
        self.pid = pid
        self.log = log
        self._offset = offset

    @property
    def alive(self) -> bool:
        """Whether the process exists (a stopped one does)."""
        try:
            os.kill(self.pid, 0)
        except ProcessLookupError:
            return False
        return True

    def send(self, which: signal.Signals) -> None:
        """Send a signal, if it still lives."""
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, which)

    def kill(self) -> None:
        """SIGKILL, and wait for the end."""
        self.send(signal.SIGKILL)
        self.wait_gone(10)

    def wait_gone(self, seconds: float) -> None:
        """Wait for its end."""
        wait_until(lambda: not self.alive, seconds, f"the end of process {self.pid}")

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
        self._zygote: subprocess.Popen[str] | None = None
        self._workers: list[Worker] = []
        self._lock = threading.Lock()

    def __enter__(self) -> Self:
        self._folder.mkdir(parents=True, exist_ok=True)
        with (self._folder / "zygote.log").open("ab") as log:
            self._zygote = subprocess.Popen(
                [sys.executable, "-m", "tests.chaos.zygote"],
                cwd=PROJECT,
                env={**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"},
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
            )
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.kill_all()
        assert self._zygote is not None
        assert self._zygote.stdin is not None
        self._zygote.stdin.close()
        self._zygote.wait(10)

    def start(
        self, name: str, role: str = "generate", *, wait: bool = True, **options: Any
    ) -> Worker:
        """Start a worker of this name; `environment` and the options of `tests.chaos.entry`."""
        assert self._zygote is not None
        assert self._zygote.stdin is not None
        assert self._zygote.stdout is not None
        log = self._folder / f"{name}.log"
        log.touch()
        order = {
            "role": role,
            "log": str(log),
            "environment": {
                **self._environment,
                "DARKROOM_WORKER_NAME": name,
                **options.pop("environment", {}),
            },
            "options": options,
        }
        offset = log.stat().st_size
        with self._lock:
            self._zygote.stdin.write(json.dumps(order) + "\n")
            self._zygote.stdin.flush()
            worker = Worker(int(self._zygote.stdout.readline()), log, offset)
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
