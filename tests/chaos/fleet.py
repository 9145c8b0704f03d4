"""Workers of a trial: started in a blink by the fork server, killed in every way there is."""

import json
import signal
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

from tests.processes import Service, slowness


class Worker(Service):
    """One life of a worker process."""

    imports = "light"
    warm = True

    @property
    def alive(self) -> bool:
        """Whether the process exists (a stopped one does)."""
        return self.child.poll() is None

    def wait_gone(self, seconds: float) -> None:
        """Wait for its end."""
        self.child.wait(seconds * slowness())


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
        own = {"DARKROOM_WORKER_NAME": name, **options.pop("environment", {})}
        command = ["-m", "tests.chaos.entry", role, json.dumps(options)]
        worker = Worker({**self._environment, **own}, command, log)
        worker.start()
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
