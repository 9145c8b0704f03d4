"""What every part of the stack has in common: start, answer, stop, kill, restart."""

import threading
from abc import ABC, abstractmethod
from typing import ClassVar

from deploy.local.errors import ServerFailedError
from deploy.local.home import Home
from deploy.local.process import ChildProcess, Program, describe_failure, wait_for_answer


class Service(ABC):
    """One program of the stack: a server with data of its own, the API or a worker."""

    name: str
    start_seconds: ClassVar[float] = 30.0
    """How long it may take until it answers."""

    _child: ChildProcess | None = None

    @property
    def running(self) -> bool:
        """Whether its process is alive."""
        return self._child is not None and self._child.running

    @property
    def pid(self) -> int:
        """The process id.

        Raises:
            ServerFailedError: it was not started.
        """
        if self._child is None:
            raise ServerFailedError(f"{self.name} was not started")
        return self._child.pid

    def start(self, stop: threading.Event | None = None) -> None:
        """Returns when the program answers in its own protocol; nothing to do if it runs.

        Raises:
            ServerFailedError: it ended or did not answer; the message has the end of its log.
            StackError: its data folder cannot be used.
            StopRequestedError: ``stop`` was set meanwhile.
        """
        if self.running:
            return
        self.prepare()
        child = ChildProcess(self.program())
        wait_for_answer(child, self.answers, seconds=self.start_seconds, stop=stop)
        self._child = child

    def ask_to_stop(self) -> None:
        """Begins a clean stop without waiting for its end."""
        if self._child is not None:
            self._child.ask_to_stop()

    def stop(self, seconds: float = 5.0) -> None:
        """A clean stop; a kill where that takes longer than ``seconds``."""
        if self._child is not None:
            self._child.stop(seconds)

    def kill(self) -> None:
        """SIGKILL, as a crash would; returns when the process is gone."""
        if self._child is not None:
            self._child.kill()

    def restart(self) -> None:
        """A clean stop and a start, on the same port and the same data."""
        self.stop()
        self.start()

    def failure(self) -> str | None:
        """How it ended, with the last lines of its log; None while it runs or before its start."""
        if self._child is None or self._child.exit_code is None:
            return None
        return describe_failure(self._child.program, self._child.exit_code)

    @abstractmethod
    def prepare(self) -> None:
        """Makes the data folder and the configuration."""

    @abstractmethod
    def program(self) -> Program:
        """The program to run."""

    @abstractmethod
    def answers(self) -> bool:
        """Whether it answers a request of its own protocol now."""


class Server(Service):
    """A service with data and a port, which stay the same over stop, kill and start."""

    def __init__(self, home: Home, port: int) -> None:
        """Starts nothing yet."""
        self.home = home
        self.port = port
