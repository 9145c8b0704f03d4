"""The jobs in this process's hands, and the thread that keeps their leases alive.

A lease that cannot be renewed is not given up at once: Postgres may be restarting. It is lost when
the ledger says so, and then the job stops at its next step.
"""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from enum import StrEnum
from uuid import UUID

from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.orm import Session, sessionmaker

from shared.jobs import statements
from shared.jobs.models import Job
from shared.logging import get_logger
from shared.settings import Settings

log = get_logger(__name__)


class StopReason(StrEnum):
    """Why a job in hand must not go on."""

    CANCELED = "canceled"
    EXPIRED = "expired"
    LOST = "lost"
    RELEASED = "released"


class Lease:
    """One attempt in this process's hands."""

    def __init__(self, job: Job) -> None:
        self.job_id: UUID = job.id
        self.attempt: int = job.attempt
        self._lock = threading.Lock()
        self._reason: StopReason | None = None
        self._on_stop: list[Callable[[], None]] = []

    @property
    def stop_reason(self) -> StopReason | None:
        """Why the job must stop; None while it may go on. The first reason stays."""
        return self._reason

    def stop(self, reason: StopReason) -> None:
        """Make the job stop at its next step. Safe from any thread, and twice."""
        with self._lock:
            if self._reason is not None:
                return
            self._reason = reason
            callbacks = list(self._on_stop)
        for callback in callbacks:
            callback()

    def on_stop(self, callback: Callable[[], None]) -> None:
        """Call back when the job must stop; at once if it must already."""
        with self._lock:
            if self._reason is None:
                self._on_stop.append(callback)
                return
        callback()


class LeaseKeeper:
    """Holds the leases of a process and renews them all in one statement."""

    def __init__(self, settings: Settings, database: sessionmaker[Session]) -> None:
        self._lease = settings.lease
        self._interval = settings.heartbeat.total_seconds()
        self._database = database
        self._on_beat: list[Callable[[], None]] = []
        self._held: dict[UUID, Lease] = {}
        self._lock = threading.Lock()
        self._wake = threading.Event()
        self._closed = False
        self._thread = threading.Thread(target=self._run, name="heartbeat", daemon=True)

    def start(self) -> None:
        """Begin to beat."""
        self._thread.start()

    def on_beat(self, callback: Callable[[], None]) -> None:
        """Call this at every heartbeat too."""
        self._on_beat.append(callback)

    def close(self) -> None:
        """Stop beating; what is still held will be taken for lost."""
        self._closed = True
        self._wake.set()
        self._thread.join(timeout=5)

    @property
    def held(self) -> list[Lease]:
        """The attempts in hand now."""
        with self._lock:
            return list(self._held.values())

    @contextmanager
    def hold(self, job: Job) -> Iterator[Lease]:
        """Keep the lease of a claimed job for the length of the block."""
        lease = Lease(job)
        with self._lock:
            self._held[lease.job_id] = lease
        try:
            yield lease
        finally:
            with self._lock:
                if self._held.get(lease.job_id) is lease:
                    del self._held[lease.job_id]

    def stop_all(self, reason: StopReason) -> None:
        """Stop everything in hand, for a shutdown or a lost device."""
        for lease in self.held:
            lease.stop(reason)

    def look_now(self, job_id: UUID) -> None:
        """Somebody changed this job: if it is in hand, ask the ledger without waiting."""
        with self._lock:
            if job_id not in self._held:
                return
        self._wake.set()

    def renew(self) -> None:
        """Renew every lease in hand and stop those that are lost or canceled.

        Raises:
            SQLAlchemyError: the ledger cannot be reached.
        """
        held = self.held
        if not held:
            return
        with self._database.begin() as session:
            pairs = [(lease.job_id, lease.attempt) for lease in held]
            renewed = {
                job.id: job for job in session.scalars(statements.renew_leases(pairs, self._lease))
            }
        for lease in held:
            job = renewed.get(lease.job_id)
            if job is None:
                self._stop_if_still_held(lease)
            elif job.cancel_requested:
                lease.stop(StopReason.CANCELED)

    def _stop_if_still_held(self, lease: Lease) -> None:
        """A job that ended while the statement ran is not lost; it has left the hands."""
        with self._lock:
            still_held = self._held.get(lease.job_id) is lease
        if still_held:
            lease.stop(StopReason.LOST)

    def _run(self) -> None:
        wait = self._interval
        while not self._closed:
            self._wake.wait(wait)
            self._wake.clear()
            if self._closed:
                return
            try:
                self.renew()
                wait = self._interval
            except SQLAlchemyError as error:
                log.warning("heartbeat_failed", error=type(error).__name__, held=len(self.held))
                # Soon again: whoever is first when Postgres is back keeps its jobs.
                wait = min(1.0, self._interval)
            for callback in self._on_beat:
                callback()
