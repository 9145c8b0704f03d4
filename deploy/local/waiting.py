"""Waits for a condition with a deadline, and gives up at once when the user wants to stop."""

import threading
import time
from collections.abc import Callable

from deploy.local.errors import ServerFailedError, StopRequestedError


def wait_until(
    condition: Callable[[], bool],
    *,
    what: str,
    seconds: float,
    stop: threading.Event | None = None,
    interval: float = 0.05,
) -> None:
    """Returns when ``condition`` is true; it is asked every ``interval`` seconds.

    Raises:
        ServerFailedError: it was not true within ``seconds``; the message names ``what``.
        StopRequestedError: ``stop`` was set meanwhile.
    """
    deadline = time.monotonic() + seconds
    event = stop or threading.Event()
    while not condition():
        if time.monotonic() > deadline:
            raise ServerFailedError(f"{what} did not answer within {seconds:.0f} s")
        if event.wait(interval):
            raise StopRequestedError
