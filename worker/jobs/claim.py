"""Claim the job of a message: once per process, through outages, and suspects one at a time.

A job that was in the hands of a worker that vanished is a suspect: it, or one of the jobs beside
it, may be what kills workers. A worker runs at most one suspect at a time, among jobs that are
none, so that a poisonous job is found out by its second kill and its former neighbours are not
quarantined with it.
"""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from uuid import UUID

from sqlalchemy.exc import SQLAlchemyError

from shared.core.database import is_outage, one_statement
from shared.core.logging import get_logger
from shared.jobs.models import Job
from shared.jobs.queries import claims
from worker.process import WorkerProcess

log = get_logger(__name__)


_TURN_SECONDS = 1.0
"""How long a thread waits for the suspects' turn before it sends the message to the queue's end."""


_FIRST_PAUSE_SECONDS = 0.1


_LONGEST_PAUSE_SECONDS = 1.0


class WorkerLeaving(Exception):
    """This worker claims nothing any more; the message is for another."""


@contextmanager
def claimed(worker: WorkerProcess, job_id: UUID) -> Iterator[Job | None]:
    """The job, claimed; None when the message is stale, early, a repetition, or put off.

    Raises:
        WorkerLeaving: the worker was told to leave before the job could be claimed.
    """
    with worker.leases.only_thread(job_id) as alone:
        if not alone:
            yield None
            return
        job = _claim(worker, job_id, suspect=False)
        suspect = None if job is not None else _find_suspect(worker, job_id)
        if suspect is None:
            yield job
            return
        if not worker.suspects.acquire(timeout=_TURN_SECONDS):
            worker.publish(suspect)
            yield None
            return
        try:
            yield _claim(worker, job_id, suspect=True)
        finally:
            worker.suspects.release()


def _claim(worker: WorkerProcess, job_id: UUID, *, suspect: bool) -> Job | None:
    lease = worker.settings.lease
    pauses = _pauses()
    unanswered = False
    while worker.claims:
        statement = claims.claim(job_id, worker.name, worker.device, lease, suspect=suspect)
        try:
            with one_statement(worker.database) as session:
                job = session.scalars(statement).one_or_none()
                if job is None and unanswered:
                    own = claims.find_own_claim(job_id, worker.name)
                    job = session.scalars(own).one_or_none()
            return job
        except SQLAlchemyError as error:
            _wait_out(error, next(pauses))
            unanswered = True
    raise WorkerLeaving


def _find_suspect(worker: WorkerProcess, job_id: UUID) -> Job | None:
    pauses = _pauses()
    while worker.claims:
        try:
            with one_statement(worker.database) as session:
                return session.scalars(claims.find_suspect(job_id)).one_or_none()
        except SQLAlchemyError as error:
            _wait_out(error, next(pauses))
    raise WorkerLeaving


def _wait_out(error: SQLAlchemyError, seconds: float) -> None:
    """Keep the message in hand: a worker that failed them all would only empty the queue."""
    if not is_outage(error):
        raise error
    log.warning("ledger_unreachable", error=type(error).__name__)
    threading.Event().wait(seconds)


def _pauses() -> Iterator[float]:
    """Short at first: a claim that went through unanswered has a lease that is running."""
    seconds = _FIRST_PAUSE_SECONDS
    while True:
        yield seconds
        seconds = min(2 * seconds, _LONGEST_PAUSE_SECONDS)
