"""Keeps one service alive: starts it again when it ends, more slowly each time."""

import threading
import time

from deploy.local.errors import ServerFailedError
from deploy.local.service import Service

FIRST_DELAY = 0.5
"""Seconds between the first death and the restart; doubled at each further one."""
LONGEST_DELAY = 30.0
STEADY_AFTER = 60.0
"""A service that has run for this many seconds is given the first delay again."""


class Keeper:
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
