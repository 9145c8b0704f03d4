"""A process that has imported everything once and forks a worker for each line it reads.

A worker's imports take seconds; a trial kills hundreds of them. The zygote starts no thread and
opens no connection, so that its children are as good as fresh ones.
"""

import faulthandler
import json
import os
import signal
import sys
import traceback
from typing import Any, NoReturn

import boto3  # noqa: F401  (all of these for the children)
import celery.apps.worker
import celery.concurrency.thread
import celery.worker.consumer
import celery.worker.strategy  # noqa: F401
import kombu.transport.redis  # noqa: F401
import psycopg  # noqa: F401
import uvicorn  # noqa: F401

import worker.cpu
import worker.engine.simulated
import worker.gpu  # noqa: F401
from tests.chaos.entry import run_process


def main() -> None:
    """Read orders, one JSON object a line; answer each with a process id."""
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # the kernel buries the children
    for line in sys.stdin:
        order = json.loads(line)
        child = os.fork()
        if child == 0:
            _become(order)
        sys.stdout.write(f"{child}\n")
        sys.stdout.flush()


def _become(order: dict[str, Any]) -> NoReturn:
    code = 1
    try:
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        os.setsid()
        log = os.open(order["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        os.dup2(log, 1)
        os.dup2(log, 2)
        os.environ.update(order["environment"])
        faulthandler.register(signal.SIGUSR1)  # a worker that is stuck shows where
        run_process(order["role"], order["options"])
        code = 0
    except SystemExit as error:
        code = error.code if isinstance(error.code, int) else 1
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        os._exit(code)


if __name__ == "__main__":
    main()
