"""The jobs that this process has in flight: the thread that renews their leases, and cancellation.

A lease that cannot be renewed is not given up at once: Postgres may be restarting. It is lost when
the database says so, and then the job stops at its next step.
"""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from enum import StrEnum
from typing import TypeVar
from uuid import UUID

import redis
from sqlalchemy.orm import Session, sessionmaker

from shared.core.broker import STOP_CHANNEL, read_id
from shared.core.database import is_outage
from shared.core.errors import FilterUnavailable, SignerUnavailable, StorageUnavailable
from shared.core.logging import get_logger
from shared.core.settings import Settings
from shared.jobs.models import Job
from shared.jobs.queries import claims
from worker.core.loop import BackgroundLoop, ChannelListener


class StopReason(StrEnum):
    """Why a job in flight must not continue."""

    CANCELED = "canceled"
    EXPIRED = "expired"
    LOST = "lost"
    RELEASED = "released"


class Lease:
    """One attempt that this process has in flight."""

    def __init__(self, job: Job) -> None:
        self.job_id: UUID = job.id
        self.attempt: int = job.attempt
        self._lock = threading.Lock()
        self.stop_reason: StopReason | None = None
        """Why the job must stop; None while it may continue. The first reason stays."""
        self._stopped = threading.Event()
        self._on_stop: list[Callable[[], None]] = []

    def stop(self, reason: StopReason) -> None:
        """Make the job stop at its next step. Safe from any thread, and twice."""
        with self._lock:
            if self.stop_reason is not None:
                return
            self.stop_reason = reason
            callbacks = list(self._on_stop)
        self._stopped.set()
        for callback in callbacks:
            callback()

    def on_stop(self, callback: Callable[[], None]) -> None:
        """Call back when the job must stop; at once if it must already."""
        with self._lock:
            if self.stop_reason is None:
                self._on_stop.append(callback)
                return
        callback()

    def wait(self, seconds: float) -> None:
        """Pause, but no longer than the job may continue."""
        self._stopped.wait(seconds)


class LeaseRenewer(BackgroundLoop):
    """Holds the leases of a process and renews them all in one statement.

    `database` should be a connection of its own: a heartbeat must not queue behind commits.
    `name` is asked at every heartbeat (see `worker.core.registration`).
    """

    def __init__(
        self, settings: Settings, database: sessionmaker[Session], name: Callable[[], str]
    ) -> None:
        super().__init__("lease-renewer", settings.heartbeat.total_seconds(), waits_first=True)
        self._lease = settings.lease
        self._database = database
        self._name = name
        self._held: dict[UUID, Lease] = {}
        self._in_flight: set[UUID] = set()
        self._lock = threading.Lock()

    @property
    def held(self) -> list[Lease]:
        with self._lock:
            return list(self._held.values())

    @property
    def is_idle(self) -> bool:
        """Whether no job is in flight or about to be."""
        with self._lock:
            return not self._held and not self._in_flight

    @contextmanager
    def only_thread(self, job_id: UUID) -> Iterator[bool]:
        """Whether this thread is the only one of the process that deals with the job.

        So a message that came twice cannot lead to a second run of the same attempt, and a claim
        of unknown outcome that turns out to be this worker's is this thread's.
        """
        with self._lock:
            first = job_id not in self._in_flight
            self._in_flight.add(job_id)
        try:
            yield first
        finally:
            if first:
                with self._lock:
                    self._in_flight.discard(job_id)

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
                del self._held[lease.job_id]

    def stop_all(self, reason: StopReason) -> None:
        """Stop everything in flight, for a shutdown or a lost device."""
        for lease in self.held:
            lease.stop(reason)

    def job_changed(self, job_id: UUID) -> None:
        """Somebody changed this job: if it is in flight, ask the database without waiting."""
        with self._lock:
            if job_id not in self._held:
                return
        self.wake()

    def renew(self) -> None:
        """Renew every lease in flight and stop those that are lost, canceled or out of time.

        Raises:
            SQLAlchemyError: the database cannot be reached.
        """
        held = {(lease.job_id, lease.attempt): lease for lease in self.held}
        if not held:
            return
        pairs = list(held)
        with self._database.begin() as session:
            statement = claims.renew_leases(pairs, self._name(), self._lease)
            renewed = {(job.id, job.attempt): job for job in session.scalars(statement)}
        left_out = [pair for pair in pairs if pair not in renewed]
        lost: list[tuple[UUID, int]] = []
        if left_out:
            with self._database.begin() as session:
                lost = [(row[0], row[1]) for row in session.execute(claims.find_lost(left_out))]
        for pair, job in renewed.items():
            if job.cancel_requested:
                held[pair].stop(StopReason.CANCELED)
            elif self._is_out_of_time(job):
                held[pair].stop(StopReason.EXPIRED)
        for pair in lost:
            self._stop_if_still_held(held[pair])

    def _is_out_of_time(self, job: Job) -> bool:
        """By the database's clock, which the renewed lease tells."""
        if job.finish_deadline is None or job.lease_until is None:
            return False
        return job.lease_until - self._lease >= job.finish_deadline

    def _stop_if_still_held(self, lease: Lease) -> None:
        """A job that ended while the statement ran is not lost; it is no longer in flight."""
        with self._lock:
            still_held = self._held.get(lease.job_id) is lease
        if still_held:
            lease.stop(StopReason.LOST)

    def step(self) -> float | None:
        self.renew()
        return self._interval

    def failed(self, error: Exception) -> float | None:
        """Try again soon: whoever is first when Postgres is back keeps its jobs."""
        return min(1.0, super().failed(error) or 0.0)


class StopListener(ChannelListener):
    """Listens on the stop channel. What it misses in an outage of Redis, the next renewal finds."""

    def __init__(self, client: "redis.Redis", leases: LeaseRenewer) -> None:
        super().__init__("stop-listener", client, STOP_CHANNEL)
        self._leases = leases

    def heard(self, data: bytes | None) -> None:
        """A job was canceled or has run out of time."""
        job_id = data and read_id("stop_signal", data)
        if job_id:
            self._leases.job_changed(job_id)


# A loop of its own rather than a library's, because a pause must end when the lease does.

log = get_logger(__name__)

OUTAGE_LIMIT = timedelta(minutes=10)
"""How long a job waits for S3, the filters, the signer or Postgres before it gives up."""

RELEASE_LIMIT = timedelta(seconds=3)
"""How long a job that must stop waits to have that recorded; its lease would end it as well."""

_OUTAGES = (StorageUnavailable, SignerUnavailable, FilterUnavailable)
_FIRST_PAUSE = 0.2
_LONGEST_PAUSE = 2.0
T = TypeVar("T")


class LeaseLost(Exception):
    """The job was stopped, or somebody else has it now; what this attempt made is discarded."""


def retry_outage(action: Callable[[], T], lease: Lease) -> T:
    """Do something with S3, the signer or the filters.

    Raises:
        LeaseLost: the job was stopped first.
        StorageUnavailable: S3 stayed unavailable.
        SignerUnavailable: the signer did.
        FilterUnavailable: the filters did.
    """

    def one_try() -> T:
        if lease.stop_reason is not None:
            raise LeaseLost
        return action()

    return _retry(one_try, lambda error: isinstance(error, _OUTAGES), lease, OUTAGE_LIMIT)


def retry_database(action: Callable[[], T], lease: Lease) -> T:
    """Do something with Postgres for a job that continues.

    Once the action was tried, its COMMIT may have gone through unanswered, so that it is tried
    again even when the lease seems lost: only the database knows whether it was lost or used.

    Raises:
        LeaseLost: the job was stopped before the first try, or must be handed back now.
        SQLAlchemyError: Postgres stayed unavailable, or refuses the statement.
    """
    tried = False

    def one_try() -> T:
        nonlocal tried
        reason = lease.stop_reason
        if reason is StopReason.RELEASED or (reason is not None and not tried):
            raise LeaseLost
        tried = True
        return action()

    return _retry(one_try, is_outage, lease, OUTAGE_LIMIT)


def record_stop(action: Callable[[], T], lease: Lease) -> T:
    """Tell Postgres how a stopped job ended, within a few seconds or not at all.

    Raises:
        SQLAlchemyError: Postgres stayed unavailable; the lease will run out instead.
    """
    return _retry(action, is_outage, lease, RELEASE_LIMIT)


def _retry(
    action: Callable[[], T],
    passes: Callable[[Exception], bool],
    lease: Lease,
    limit: timedelta,
) -> T:
    deadline = time.monotonic() + limit.total_seconds()
    pause = _FIRST_PAUSE
    while True:
        try:
            return action()
        except Exception as error:
            if not passes(error) or time.monotonic() + pause >= deadline:
                raise
            reason = getattr(error, "message", None)
            log.warning("waiting_out", error=type(error).__name__, reason=reason, seconds=pause)
        if lease.stop_reason is None:
            lease.wait(pause)
        else:
            time.sleep(pause)
        pause = min(2 * pause, _LONGEST_PAUSE)
