"""Claim the job of a message: once per process, through outages, and poison jobs one at a time.

A job whose worker vanished is treated as poison: it, or a job that ran with it, may be what
kills workers. A worker runs at most one of them at a time, among jobs that are none, so that the
one that kills is found out by its second kill, and its former neighbours do not fail with it.
"""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from uuid import UUID

from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.orm import Session

from shared.core.database import autocommit, is_outage
from shared.core.logging import get_logger
from shared.jobs.models import Job
from shared.jobs.queries import claims
from worker.process import WorkerProcess

log = get_logger(__name__)

_LOCK_WAIT_SECONDS = 1.0
"""How long a thread waits for the slot before it sends the message to the queue's end."""

_FIRST_PAUSE_SECONDS = 0.1
_LONGEST_PAUSE_SECONDS = 1.0


class WorkerLeaving(Exception):
    """This worker claims nothing any more; the message is for another."""


@contextmanager
def claim_job(worker: WorkerProcess, job_id: UUID) -> Iterator[Job | None]:
    """The job, claimed; None when the message is stale, early, a repetition, or put off.

    Raises:
        WorkerLeaving: the worker was told to leave before the job could be claimed.
    """
    with worker.leases.only_thread(job_id) as alone:
        if not alone:
            yield None
            return
        job = _claim(worker, job_id, poison=False)
        poison = None
        if job is None:
            find = claims.find_poison_job(job_id)
            poison = _ask(worker, lambda session: session.scalars(find).one_or_none())
        if poison is None:
            yield job
            return
        if not worker.poison_slot.acquire(timeout=_LOCK_WAIT_SECONDS):
            worker.publish(poison)
            yield None
            return
        try:
            yield _claim(worker, job_id, poison=True)
        finally:
            worker.poison_slot.release()


def _claim(worker: WorkerProcess, job_id: UUID, *, poison: bool) -> Job | None:
    lease = worker.settings.lease
    unanswered = False

    def claim(session: Session) -> Job | None:
        nonlocal unanswered
        was_unanswered, unanswered = unanswered, True
        statement = claims.claim(job_id, worker.name, worker.device, lease, poison=poison)
        job = session.scalars(*statement).one_or_none()
        if job is None and was_unanswered:
            job = session.scalars(claims.find_own_claim(job_id, worker.name)).one_or_none()
        return job

    return _ask(worker, claim)


def _ask(worker: WorkerProcess, statement: Callable[[Session], Job | None]) -> Job | None:
    """Ask the database, through outages: a worker that failed all messages would only empty the
    queue.

    Raises:
        WorkerLeaving: the worker was told to leave first.
    """
    for pause in _pauses():
        if not worker.claims:
            break
        try:
            with autocommit(worker.database) as session:
                return statement(session)
        except SQLAlchemyError as error:
            if not is_outage(error):
                raise
            log.warning("database_unreachable", error=type(error).__name__)
        threading.Event().wait(pause)
    raise WorkerLeaving


def _pauses() -> Iterator[float]:
    """Short at first: a claim that went through unanswered has a lease that is running."""
    seconds = _FIRST_PAUSE_SECONDS
    while True:
        yield seconds
        seconds = min(2 * seconds, _LONGEST_PAUSE_SECONDS)
