"""The dispatcher: every two seconds, one process puts right what the ledger and Redis disagree on.

It runs in every CPU worker and leads in one: the one that holds an advisory lock, which passes on
by itself when its holder dies. Each duty is one small function of `worker.duties`.
"""

import threading
from collections.abc import Callable

import redis
from celery import Celery
from sqlalchemy import Connection, Engine, func, select
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.orm import Session, sessionmaker

from shared.logging import get_logger
from shared.settings import Settings
from worker.duties import Duties

log = get_logger(__name__)

_LOCK = 0x0D15_BA7C
"""The advisory lock of the leading dispatcher."""


class Dispatcher:
    """The thread that leads, or waits to lead."""

    def __init__(
        self,
        settings: Settings,
        engine: Engine,
        database: sessionmaker[Session],
        client: "redis.Redis",
        app: Celery,
    ) -> None:
        self._interval = settings.dispatch_interval.total_seconds()
        self._engine = engine
        self._duties = Duties(settings, database, client, app)
        self._lock_connection: Connection | None = None
        self._on_round: list[Callable[[], None]] = []
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._run, name="dispatcher", daemon=True)

    @property
    def leads(self) -> bool:
        """Whether this process holds the lock."""
        return self._lock_connection is not None

    def on_round(self, callback: Callable[[], None]) -> None:
        """Call this every round, leading or not."""
        self._on_round.append(callback)

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def close(self) -> None:
        """Stop after the round in progress and give the lock free."""
        self._closing.set()
        self._thread.join(timeout=10)

    def _run(self) -> None:
        while not self._closing.is_set():
            try:
                if self._lead():
                    self._duties.perform_all()
            except SQLAlchemyError as error:
                log.warning("dispatcher_lost_postgres", error=type(error).__name__)
                self._give_up_lock()
                # Workers that lived through the outage renew first; then leases are judged.
                self._duties.postpone_lease_expiry()
            except Exception:
                log.exception("dispatcher_round_failed")
            for callback in self._on_round:
                callback()
            self._closing.wait(self._interval)
        self._give_up_lock()

    def _lead(self) -> bool:
        """Take or keep the lock. A dead connection has lost it, so it is asked every round."""
        if self._lock_connection is None:
            connection = self._engine.connect().execution_options(isolation_level="AUTOCOMMIT")
            if not connection.scalar(select(func.pg_try_advisory_lock(_LOCK))):
                connection.close()
                return False
            self._lock_connection = connection
            log.info("dispatcher_leads")
        else:
            self._lock_connection.scalar(select(1))
        return True

    def _give_up_lock(self) -> None:
        if self._lock_connection is not None:
            self._lock_connection.invalidate()
            self._lock_connection.close()
            self._lock_connection = None
