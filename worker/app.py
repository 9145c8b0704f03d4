"""Run Celery's own worker inside this process, on the threads pool."""

import signal
import warnings
from collections.abc import Sequence

from celery import Celery, signals
from celery.platforms import SecurityWarning

from worker.acknowledge import forgive


def consume(app: Celery, name: str, queues: Sequence[str], threads: int) -> None:
    """Take messages from these queues, in this order, until SIGTERM or SIGINT.

    Blocks. On a signal no more is taken; the call returns when the tasks in hand have ended.
    """
    forgive(app)
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


@signals.setup_logging.connect
def _keep_our_logging(**_: object) -> None:
    """Being connected is enough: Celery then leaves the logging as it is."""
