"""Celery's tasks: each takes ids and calls one function that does the work."""

import threading
from contextlib import AbstractContextManager
from typing import Any

import structlog
from celery import Celery, Task
from celery.exceptions import Reject

from shared.core import broker, telemetry
from shared.core.broker import read_id
from worker.jobs.claim import WorkerLeaving
from worker.jobs.run import run_job
from worker.process import WorkerProcess
from worker.webhooks.deliver import Deliverer

_REQUEUE_SECONDS = 0.2


def register_generate(app: Celery, worker: WorkerProcess) -> None:
    """The task of GPU workers: run one job."""

    @app.task(name=broker.GENERATE_TASK, bind=True)
    def generate(task: Task, job_id: object) -> None:
        known = read_id("message", job_id)
        if known is None:
            return
        try:
            with _request_of(task):
                run_job(worker, known, _header(task, telemetry.TRACEPARENT))
        except WorkerLeaving:
            # Back to the queue, for a worker that stays; slowly, because a worker whose device is
            # lost goes on consuming for the seconds that it takes to leave.
            threading.Event().wait(_REQUEUE_SECONDS)
            raise Reject("this worker is leaving", requeue=True) from None


def register_deliver(app: Celery, deliverer: Deliverer) -> None:
    """The task of CPU workers: a webhook delivery is due."""

    @app.task(name=broker.DELIVER_TASK, bind=True)
    def deliver(task: Task, delivery_id: object) -> None:
        known = read_id("message", delivery_id)
        if known is not None:
            deliverer.offer(known, _header(task, telemetry.TRACEPARENT))


def _request_of(task: Task) -> AbstractContextManager[Any]:
    """For the log lines of work that a request has led to."""
    request_id = _header(task, telemetry.REQUEST_ID)
    known = {} if request_id is None else {telemetry.REQUEST_ID: request_id}
    return structlog.contextvars.bound_contextvars(**known)


def _header(task: Task, name: str) -> str | None:
    value = task.request.get(name)
    return value if isinstance(value, str) else None
