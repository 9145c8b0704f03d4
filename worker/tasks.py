"""Celery's tasks: each takes ids and calls one function that does the work."""

import threading
from uuid import UUID

from celery import Celery
from celery.exceptions import Reject

from shared.queue import names
from worker.claiming import WorkerLeaving
from worker.deliver import Deliverer
from worker.process import WorkerProcess
from worker.run_job import run_job

_REQUEUE_SECONDS = 0.2


def register_generate(app: Celery, worker: WorkerProcess) -> None:
    """The task of GPU workers: run one job."""

    @app.task(name=names.GENERATE_TASK)
    def generate(job_id: str) -> None:
        try:
            run_job(worker, UUID(job_id))
        except WorkerLeaving:
            # Back to the queue, for a worker that stays; slowly, because a worker whose device is
            # lost goes on consuming for the seconds that it takes to leave.
            threading.Event().wait(_REQUEUE_SECONDS)
            raise Reject("this worker is leaving", requeue=True) from None


def register_deliver(app: Celery, deliverer: Deliverer) -> None:
    """The task of CPU workers: a webhook delivery is due."""

    @app.task(name=names.DELIVER_TASK)
    def deliver(delivery_id: str) -> None:
        deliverer.offer(UUID(delivery_id))
