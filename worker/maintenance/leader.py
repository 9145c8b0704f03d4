"""The dispatcher: every two seconds, one process puts right what the ledger and Redis disagree on.

It runs in every CPU worker and leads in one: the one that holds an advisory lock, which passes on
by itself when its holder dies, freezes or is cut off. What it does is a list of duties, each one
function that is safe to repeat, to skip, and to perform in two processes at once.
"""

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import timedelta

import redis
from kombu.exceptions import KombuError
from sqlalchemy import Connection, Engine, func, select, text
from sqlalchemy.exc import SQLAlchemyError

from shared.core.database import is_outage
from shared.core.errors import StorageUnavailable
from shared.core.logging import get_logger
from shared.core.settings import Settings
from worker.core.metrics import measured_duty

log = get_logger(__name__)


_LOCK = 0x0D15_BA7C
"""The advisory lock of the leading dispatcher."""


_SILENCE = "15s"
"""Postgres ends the leader's session, and with it the lock, after this long without a word."""


@dataclass(frozen=True)
class Duty:
    """Something that the leading dispatcher does again and again."""

    name: str
    perform: Callable[[], object]
    every: timedelta = timedelta(0)
    """At most this often; by default every round."""
    settle: timedelta = timedelta(0)
    """How long to lead before the first time, so that others can recover from an outage first."""


class Dispatcher:
    """The thread that leads, or waits to lead."""

    def __init__(
        self,
        settings: Settings,
        engine: Engine,
        duties: Sequence[Duty],
        may_lead: Callable[[], bool] = lambda: True,
    ) -> None:
        """`may_lead` false: it gives the lock up, or does not take it."""
        self._may_lead = may_lead
        self._interval = settings.dispatch_interval.total_seconds()
        self._engine = engine
        self._duties = duties
        self._lock_connection: Connection | None = None
        self._leads_since = 0.0
        self._performed: dict[str, float] = {}
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._run, name="dispatcher", daemon=True)

    @property
    def leads(self) -> bool:
        """Whether this process holds the lock."""
        return self._lock_connection is not None

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def close(self) -> None:
        """Stop after the duty in progress and give the lock free."""
        self._closing.set()
        self._thread.join(timeout=10)

    def _run(self) -> None:
        while not self._closing.is_set():
            try:
                if not self._may_lead():
                    self._give_up_lock()
                elif self._lead():
                    self._round()
            except SQLAlchemyError as error:
                log.warning("dispatcher_lost_postgres", error=type(error).__name__)
                self._give_up_lock()
            except Exception:
                log.exception("dispatcher_round_failed")
            self._closing.wait(self._interval)
        self._give_up_lock()

    def _round(self) -> None:
        """Every duty that is due; one that fails does not keep the others from being done.

        Raises:
            SQLAlchemyError: the ledger is out of reach; the rest of the round is left out.
        """
        for duty in self._duties:
            if self._closing.is_set():
                return
            if not self._is_due(duty):
                continue
            self._assert_lead()
            self._performed[duty.name] = time.monotonic()
            try:
                with measured_duty(duty.name) as returned:
                    returned(duty.perform())
            except (redis.RedisError, KombuError, OSError, StorageUnavailable) as error:
                log.warning("duty_put_off", duty=duty.name, error=type(error).__name__)
            except Exception as error:
                if is_outage(error):
                    raise
                log.exception("duty_failed", duty=duty.name)

    def _is_due(self, duty: Duty) -> bool:
        now = time.monotonic()
        if now - self._leads_since < duty.settle.total_seconds():
            return False
        last = self._performed.get(duty.name)
        return last is None or now - last >= duty.every.total_seconds()

    def _lead(self) -> bool:
        """Take or keep the lock."""
        if self._lock_connection is not None:
            return True
        connection = self._engine.connect().execution_options(isolation_level="AUTOCOMMIT")
        try:
            if not connection.scalar(select(func.pg_try_advisory_lock(_LOCK))):
                connection.close()
                return False
            # A frozen process keeps its sockets open; without this it would lead for ever.
            connection.execute(text(f"SET idle_session_timeout = '{_SILENCE}'"))
        except BaseException:
            connection.invalidate()
            connection.close()
            raise
        self._lock_connection = connection
        self._leads_since = time.monotonic()
        log.info("dispatcher_leads")
        return True

    def _assert_lead(self) -> None:
        """A dead connection has lost the lock, so it is asked before each duty."""
        if self._lock_connection is not None:
            self._lock_connection.scalar(select(1))

    def _give_up_lock(self) -> None:
        if self._lock_connection is not None:
            self._lock_connection.invalidate()
            self._lock_connection.close()
            self._lock_connection = None
