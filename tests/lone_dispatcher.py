"""A process that is nothing but a dispatcher; its one duty writes its process id into a file."""

import os
import sys
from datetime import timedelta
from pathlib import Path

from shared.core.database import open_engine
from shared.core.settings import get_settings
from worker.maintenance import leader


def lead(sign: Path) -> None:
    """Compete for the lead until killed."""
    settings = get_settings().model_copy(update={"dispatch_interval": timedelta(seconds=0.1)})

    def say() -> None:
        with sign.open("a") as file:
            file.write(f"{os.getpid()}\n")

    task = leader.PeriodicTask("say", say)
    leader.Dispatcher(settings, open_engine(settings, pool_size=2), [task]).run()


if __name__ == "__main__":
    # Otherwise the test of a frozen leader would take a quarter minute. A leader that is only slow
    # must not lose the lead to the one that wakes up.
    leader._SILENCE = "5s"
    lead(Path(sys.argv[1]))
