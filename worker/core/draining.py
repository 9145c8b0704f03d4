"""Hear that this worker is to drain, and note in the database when it is idle.

The order is a row, so it outlives Redis, a lost connection and a crash of the worker; Redis only
announces changes. A worker that is stopped in order has done what it was drained for: it takes the
order back, and its successor works.
"""

import time
from collections.abc import Callable

import redis
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.orm import Session, sessionmaker

from shared.admin import queries as admin_queries
from shared.admin.models import WorkerDrain
from shared.core.broker import DRAIN_CHANNEL
from shared.core.logging import get_logger
from shared.core.settings import Settings
from worker.core.loop import ChannelListener

log = get_logger(__name__)

_IDLE_POLLS = 2
"""It must be idle this often running: a message may have been on its way when the drain began (a
BRPOP waits for a second at most)."""


class Drain(ChannelListener):
    """Whether this worker is draining: kept up to date by the database and a Redis channel."""

    def __init__(
        self,
        settings: Settings,
        database: sessionmaker[Session],
        client: "redis.Redis",
        name: Callable[[], str],
        is_idle: Callable[[], bool],
    ) -> None:
        super().__init__("drain", client, DRAIN_CHANNEL)
        self._heartbeat = settings.heartbeat.total_seconds()
        self._database = database
        self._name = name
        self._is_idle = is_idle
        self._order: WorkerDrain | None = None
        self._idle_polls = 0
        self.on_change: Callable[[], None] = lambda: None
        """Called after each change."""
        self._polled_at = 0.0

    @property
    def is_draining(self) -> bool:
        return self._order is not None

    def start(self) -> None:
        """Ask once, then listen.

        Raises:
            SQLAlchemyError: the database cannot be reached.
        """
        self.poll()
        super().start()

    def complete(self) -> None:
        """The worker was stopped in order, what it was drained for: its successor works."""
        if not self.is_draining:
            return
        try:
            with self._database.begin() as session:
                session.execute(admin_queries.lift_drain(self._name()))
        except SQLAlchemyError as error:
            log.warning("drain_not_lifted", error=type(error).__name__)

    def poll(self) -> None:
        """Ask the database now.

        Raises:
            SQLAlchemyError: it cannot be reached; what was known stays.
        """
        with self._database.begin() as session:
            order = session.scalars(admin_queries.read_drain(self._name())).one_or_none()
        self._polled_at = time.monotonic()
        before, self._order = self._order, order
        if (order is None) != (before is None):
            self._idle_polls = 0
            log.info("drain_ordered" if order is not None else "drain_lifted", worker=self._name())
            self.on_change()

    def heard(self, data: bytes | None) -> None:
        """There is news of a worker, or it is time to ask; then note whether nothing is left."""
        is_for_this_worker = data == self._name().encode()
        if is_for_this_worker or time.monotonic() - self._polled_at >= self._heartbeat:
            self.poll()
        self._note_when_idle()

    def _note_when_idle(self) -> None:
        order = self._order
        if order is None or order.drained_at is not None:
            return
        self._idle_polls = self._idle_polls + 1 if self._is_idle() else 0
        if self._idle_polls <= _IDLE_POLLS:
            return
        with self._database.begin() as session:
            session.execute(admin_queries.note_drained(order.worker, order.requested_at))
        log.info("worker_drained", worker=order.worker)
        self.poll()
        self.on_change()
