"""The baseline: a bare Celery worker with the same broker settings and a task that does nothing."""

import logging
import sys
from typing import Any

import redis
from celery import Celery, signals

from shared.core.broker import celery_app
from shared.core.settings import get_settings

QUEUE = "bench.noop"
TASK = "bench.noop"
REPLY_LIST = "bench:replies"


def register(app: Celery, client: "redis.Redis") -> None:
    """A task that answers on a list if it is asked to."""

    @app.task(name=TASK)
    def noop(reply: bool) -> None:
        if reply:
            client.lpush(REPLY_LIST, b"1")


def consume(app: Celery, queue: str, threads: str) -> None:
    """Say so in the log, and consume until SIGTERM."""

    @signals.worker_ready.connect(weak=False)
    def ready(**_: Any) -> None:
        # Celery has set every logger to the level WARNING by now.
        logging.getLogger(__name__).warning("%s_ready", queue)

    logging.basicConfig()
    app.worker_main(
        [
            *("worker", "--pool=threads", f"--concurrency={threads}", f"--queues={queue}"),
            *("--without-gossip", "--without-mingle", "--loglevel=WARNING"),
        ]
    )


def main() -> None:
    """Consume until SIGTERM."""
    settings = get_settings()
    app = celery_app(settings)
    register(app, redis.Redis.from_url(settings.redis_url.get_secret_value()))
    consume(app, QUEUE, sys.argv[1])


if __name__ == "__main__":
    main()
