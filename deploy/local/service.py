"""A part of the stack: start, answer, stop, kill, restart; and what keeps it alive."""

import threading
import time
from abc import ABC, abstractmethod
from typing import ClassVar

from deploy.local.home import Home
from deploy.local.host import ServerFailedError
from deploy.local.process import ChildProcess, Program, describe_failure, wait_for_answer


class Service(ABC):
    """One program of the stack: a server with data of its own, the API or a worker."""

    name: str
    start_seconds: ClassVar[float] = 30.0
    """How long it may take until it answers."""

    _child: ChildProcess | None = None

    @property
    def running(self) -> bool:
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

    def prepare(self) -> None:  # noqa: B027  # only servers have any
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
        self.home = home
        self.port = port


FIRST_DELAY = 0.5
"""Seconds between the first death and the restart; doubled at each further one."""
LONGEST_DELAY = 30.0
STEADY_AFTER = 60.0
"""A service that has run for this many seconds is given the first delay again."""


class Restarter:
    """Looks after a service that was started once; call `check` a few times a second."""

    def __init__(self, service: Service) -> None:
        """``service`` runs."""
        self._service = service
        self._deaths = 0
        self._started = time.monotonic()
        self._start_at: float | None = None

    def check(self, stop: threading.Event) -> str | None:
        """Starts the service again where it is due; returns what the user should know, or None.

        Raises:
            StackError: it can never start again as things are.
            StopRequestedError: ``stop`` was set during a start.
        """
        if self._service.running:
            if time.monotonic() - self._started > STEADY_AFTER:
                self._deaths = 0
            return None
        if self._start_at is None:
            return self._plan_restart(self._service.failure() or f"{self._service.name} has ended")
        if time.monotonic() < self._start_at:
            return None
        return self._start_again(stop)

    def _start_again(self, stop: threading.Event) -> str:
        try:
            self._service.start(stop)
        except ServerFailedError as error:
            return self._plan_restart(str(error))
        except OSError as error:  # the disk is full: room may be made
            return self._plan_restart(f"{self._service.name} cannot be started: {error}")
        self._started = time.monotonic()
        self._start_at = None
        return f"{self._service.name} runs again"

    def _plan_restart(self, reason: str) -> str:
        delay = min(LONGEST_DELAY, FIRST_DELAY * 2**self._deaths)
        self._deaths += 1
        self._start_at = time.monotonic() + delay
        return f"{reason}\n{self._service.name} will be started again in {delay:g} s"
