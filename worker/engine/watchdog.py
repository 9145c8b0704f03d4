"""Notice that the device no longer answers: a thread that looks at the clock of the work at hand.

A hung kernel cannot be interrupted from Python, so the only cure is another process; the watchdog
merely says so, once.
"""

import threading
import time
from collections.abc import Callable


class Watchdog:
    """Calls `on_hang` from its own thread if a piece of work lasts longer than its budget."""

    def __init__(self, budget: float, on_hang: Callable[[float], None]) -> None:
        self._budget = budget
        self._on_hang = on_hang
        self._since: float | None = None
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, name="engine-watchdog", daemon=True)
        self._thread.start()

    def __enter__(self) -> None:
        self._since = time.monotonic()

    def restart(self) -> None:
        """The work at hand consists of pieces, and one has ended: the budget is for each."""
        self._since = time.monotonic()

    def __exit__(self, *_: object) -> None:
        self._since = None

    def stop(self) -> None:
        """Watch no longer."""
        self._stopped.set()

    def _run(self) -> None:
        while not self._stopped.wait(min(1.0, self._budget / 4)):
            since = self._since
            if since is not None and time.monotonic() - since > self._budget:
                self._stopped.set()
                self._on_hang(time.monotonic() - since)
