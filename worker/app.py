"""Run Celery's own worker inside this process, on the threads pool."""

import signal
from collections.abc import Sequence

from celery import Celery


def consume(app: Celery, name: str, queues: Sequence[str], threads: int) -> None:
    """Take messages from these queues, in this order, until SIGTERM or SIGINT.

    Blocks. On a signal no more is taken; the call returns when the tasks in hand have ended.
    """
    # Ctrl-C reaches the whole process group; Celery must treat it like SIGTERM, once.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    app.worker_main(
        [
            "worker",
            "--pool=threads",
            f"--concurrency={threads}",
            f"--queues={','.join(queues)}",
            f"--hostname={name}@%h",
            "--loglevel=WARNING",
            "--without-gossip",
            "--without-mingle",
        ]
    )
