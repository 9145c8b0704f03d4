"""Celery's tasks: each takes ids and calls one function that does the work."""

from uuid import UUID

from celery import Celery
from celery.exceptions import Reject

from shared.queue import names
from worker.process import WorkerProcess
from worker.run_job import run_job


def register_generate(app: Celery, worker: WorkerProcess) -> None:
    """The task of GPU workers: run one job."""

    @app.task(name=names.GENERATE_TASK)
    def generate(job_id: str) -> None:
        if not worker.claims:
            # Back to the queue, for a worker that stays.
            raise Reject("this worker is leaving", requeue=True)
        run_job(worker, UUID(job_id))
