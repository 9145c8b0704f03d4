"""The jobs in this process's hands: the thread that renews their leases, and cancellation.

A lease that cannot be renewed is not given up at once: Postgres may be restarting. It is lost when
the ledger says so, and then the job stops at its next step.
"""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from enum import StrEnum
from uuid import UUID

import redis
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.orm import Session, sessionmaker

from shared.core.broker import STOP_CHANNEL, read_id
from shared.core.logging import get_logger
from shared.core.settings import Settings
from shared.jobs.models import Job
from shared.jobs.queries import claims

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
        self._stopped = threading.Event()
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
        self._stopped.set()
        for callback in callbacks:
            callback()

    def on_stop(self, callback: Callable[[], None]) -> None:
        """Call back when the job must stop; at once if it must already."""
        with self._lock:
            if self._reason is None:
                self._on_stop.append(callback)
                return
        callback()

    def wait(self, seconds: float) -> None:
        """Pause, but no longer than the job may go on."""
        self._stopped.wait(seconds)


class LeaseKeeper:
    """Holds the leases of a process and renews them all in one statement.

    `database` should be a connection of its own: a heartbeat must not queue behind commits.
    `name` is asked at every heartbeat (see `worker.core.identity`).
    """

    def __init__(
        self, settings: Settings, database: sessionmaker[Session], name: Callable[[], str]
    ) -> None:
        self._lease = settings.lease
        self._interval = settings.heartbeat.total_seconds()
        self._database = database
        self._name = name
        self._held: dict[UUID, Lease] = {}
        self._in_hand: set[UUID] = set()
        self._lock = threading.Lock()
        self._wake = threading.Event()
        self._closed = False
        self._thread = threading.Thread(target=self._run, name="heartbeat", daemon=True)

    def start(self) -> None:
        """Begin to beat."""
        self._thread.start()

    def close(self) -> None:
        """Stop beating; what is still held will be taken for lost."""
        self._closed = True
        self._wake.set()
        if self._thread.is_alive():
            self._thread.join(timeout=5)

    @property
    def held(self) -> list[Lease]:
        """The attempts in hand now."""
        with self._lock:
            return list(self._held.values())

    @property
    def idle(self) -> bool:
        """Whether no job is in hand or about to be."""
        with self._lock:
            return not self._held and not self._in_hand

    @contextmanager
    def only_thread(self, job_id: UUID) -> Iterator[bool]:
        """Whether this thread is the only one of the process that deals with the job.

        So a message that came twice cannot lead to a second run of the same attempt, and a claim
        of unknown outcome that turns out to be this worker's is this thread's.
        """
        with self._lock:
            first = job_id not in self._in_hand
            self._in_hand.add(job_id)
        try:
            yield first
        finally:
            if first:
                with self._lock:
                    self._in_hand.discard(job_id)

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
        """Renew every lease in hand and stop those that are lost, canceled or out of time.

        Raises:
            SQLAlchemyError: the ledger cannot be reached.
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
            except Exception as error:
                # Whatever it is, a thread that ended here would cost every job in hand its lease.
                log.warning(
                    "heartbeat_failed",
                    error=type(error).__name__,
                    held=len(self.held),
                    exc_info=not isinstance(error, SQLAlchemyError),
                )
                # Soon again: whoever is first when Postgres is back keeps its jobs.
                wait = min(1.0, self._interval)


_POLL_SECONDS = 0.5


class StopSignals:
    """Listens on the stop channel. What it misses while Redis is away, the heartbeat finds."""

    def __init__(self, client: "redis.Redis", leases: LeaseKeeper) -> None:
        self._redis = client
        self._leases = leases
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._run, name="stop-signals", daemon=True)

    def start(self) -> None:
        """Begin to listen."""
        self._thread.start()

    def close(self) -> None:
        """Stop listening."""
        self._closing.set()
        if self._thread.is_alive():
            self._thread.join(timeout=2 * _POLL_SECONDS)

    def _run(self) -> None:
        while not self._closing.is_set():
            try:
                self._listen()
            except (redis.RedisError, OSError) as error:
                log.warning("stop_channel_lost", error=type(error).__name__)
                self._closing.wait(_POLL_SECONDS)

    def _listen(self) -> None:
        with self._redis.pubsub(  # type: ignore[no-untyped-call]
            ignore_subscribe_messages=True
        ) as pubsub:
            pubsub.subscribe(STOP_CHANNEL)
            while not self._closing.is_set():
                message = pubsub.get_message(timeout=_POLL_SECONDS)
                job_id = message and read_id("stop_signal", message["data"])
                if job_id:
                    self._leases.look_now(job_id)
