"""Run Celery's own worker inside this process, on the threads pool."""

import signal
import sys
import warnings
from collections.abc import Sequence
from typing import Any

from celery import Celery, signals
from celery.apps import worker as celery_worker
from celery.platforms import SecurityWarning

from worker.queue.consumer import harden

_say = celery_worker.safe_say


def consume(app: Celery, name: str, queues: Sequence[str], threads: int) -> None:
    """Take messages from these queues, in this order, until SIGTERM or SIGINT.

    Blocks. On a signal no more is taken; the call returns when the tasks in hand have ended.
    """
    harden(app)
    celery_worker.safe_say = _say_no_farewell
    # Ctrl-C reaches the whole process group; Celery must treat it like SIGTERM, once.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    # Celery warns root because of pickled messages; this broker carries JSON alone.
    warnings.filterwarnings("ignore", category=SecurityWarning)
    app.worker_main(
        [
            "--quiet",
            "worker",
            "--pool=threads",
            f"--concurrency={threads}",
            f"--queues={','.join(queues)}",
            f"--hostname={name}@%h",
            "--without-gossip",
            "--without-mingle",
        ]
    )


def _say_no_farewell(message: str, stream: Any = sys.__stderr__) -> None:
    """Celery announces its end on stdout, where a reader of logs expects events; what it writes to
    stderr (its threads' stacks, at SIGUSR1) somebody has asked for."""
    if stream is not sys.__stdout__:
        _say(message, stream)


@signals.setup_logging.connect
def _keep_our_logging(**_: object) -> None:
    """Being connected is enough: Celery then leaves the logging as it is."""
