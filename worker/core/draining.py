"""Hear that this worker is to rest, and note in the ledger when nothing is left in its hands.

The order stands in the ledger, so that it outlives Redis, a lost connection and a crash of the
worker; Redis only says that there is news. A worker that is stopped in order has done what it was
drained for: it takes the order back, and its successor works.
"""

import threading
import time
from collections.abc import Callable
from datetime import timedelta

import redis
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.orm import Session, sessionmaker

from shared.admin import queries as admin_queries
from shared.admin.models import WorkerDrain
from shared.core.broker import DRAIN_CHANNEL
from shared.core.logging import get_logger
from shared.core.settings import Settings
from worker.maintenance.leader import Duty

log = get_logger(__name__)


_POLL_SECONDS = 0.5


_EMPTY_LOOKS = 2
"""Hands must be empty this often running: a message may have been on its way when the rest began
(a BRPOP waits for a second at most)."""


_FORGET = timedelta(days=7)
"""An order that nobody has read for so long is to a name that nobody has any more."""


class Drain:
    """Whether this worker rests; a thread of its own keeps that up to date."""

    def __init__(
        self,
        settings: Settings,
        database: sessionmaker[Session],
        client: "redis.Redis",
        name: Callable[[], str],
        hands_empty: Callable[[], bool],
    ) -> None:
        self._interval = settings.heartbeat.total_seconds()
        self._database = database
        self._redis = client
        self._name = name
        self._hands_empty = hands_empty
        self._order: WorkerDrain | None = None
        self._empty_looks = 0
        self._changed: Callable[[], None] = lambda: None
        self._asked = 0.0
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._run, name="drain-orders", daemon=True)

    @property
    def rests(self) -> bool:
        """Whether the worker is to take nothing more."""
        return self._order is not None

    def start(self, changed: Callable[[], None]) -> None:
        """Ask once, then keep asking; `changed` is called after each change.

        Raises:
            SQLAlchemyError: the ledger cannot be reached.
        """
        self.ask()
        self._changed = changed
        self._thread.start()

    def close(self) -> None:
        """Stop asking."""
        self._closing.set()
        if self._thread.is_alive():
            self._thread.join(timeout=2 * _POLL_SECONDS)

    def fulfil(self) -> None:
        """The worker was stopped in order, what it was drained for: its successor works."""
        if not self.rests:
            return
        try:
            with self._database.begin() as session:
                session.execute(admin_queries.lift_drain(self._name()))
        except SQLAlchemyError as error:
            log.warning("drain_not_lifted", error=type(error).__name__)

    def ask(self) -> None:
        """Ask the ledger now.

        Raises:
            SQLAlchemyError: it cannot be reached; what was known stays.
        """
        with self._database.begin() as session:
            order = session.scalars(admin_queries.read_drain(self._name())).one_or_none()
        self._asked = time.monotonic()
        before, self._order = self._order, order
        if (order is None) != (before is None):
            self._empty_looks = 0
            log.info("drain_ordered" if order is not None else "drain_lifted", worker=self._name())
            self._changed()

    def _run(self) -> None:
        while not self._closing.is_set():
            try:
                self._hear()
            except Exception:
                # A thread that ended here would leave the worker deaf to every further order.
                log.exception("drain_thread_failed")
                self._closing.wait(_POLL_SECONDS)

    def _hear(self) -> None:
        try:
            self._listen()
        except (redis.RedisError, OSError) as error:
            log.warning("drain_channel_lost", error=type(error).__name__)
            self._closing.wait(_POLL_SECONDS)
            self._look(told=False)

    def _listen(self) -> None:
        with self._redis.pubsub(  # type: ignore[no-untyped-call]
            ignore_subscribe_messages=True
        ) as pubsub:
            pubsub.subscribe(DRAIN_CHANNEL)
            while not self._closing.is_set():
                message = pubsub.get_message(timeout=_POLL_SECONDS)
                self._look(told=message is not None and message["data"] == self._name().encode())

    def _look(self, *, told: bool) -> None:
        try:
            if told or time.monotonic() - self._asked >= self._interval:
                self.ask()
            self._note_when_empty()
        except SQLAlchemyError as error:
            log.warning("drain_not_known", error=type(error).__name__)

    def _note_when_empty(self) -> None:
        order = self._order
        if order is None or order.drained_at is not None:
            return
        self._empty_looks = self._empty_looks + 1 if self._hands_empty() else 0
        if self._empty_looks <= _EMPTY_LOOKS:
            return
        with self._database.begin() as session:
            session.execute(admin_queries.note_drained(order.worker, order.requested_at))
        log.info("worker_drained", worker=order.worker)
        self.ask()
        self._changed()


def forgetting(database: sessionmaker[Session]) -> Duty:
    """The dispatcher's duty to drop orders to workers that are gone for good."""

    def forget() -> None:
        with database.begin() as session:
            session.execute(admin_queries.forget_drains(_FORGET))

    return Duty("forget_drains", forget, every=timedelta(hours=1))
