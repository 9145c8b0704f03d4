"""Leader election and periodic tasks: one process puts right what Postgres and Redis disagree on.

The dispatcher runs in every CPU worker and leads in one: the one that holds an advisory lock,
which passes on by itself when its holder dies, freezes or is cut off. Every two seconds it
performs its periodic tasks, each one function that is safe to repeat, to skip, and to perform in
two processes at once.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import TypeVar

from sqlalchemy import Connection, Engine, func, select, text
from sqlalchemy.exc import SQLAlchemyError

from shared.core.database import is_outage
from shared.core.logging import get_logger
from shared.core.settings import Settings
from worker.core.loop import OUTAGES, BackgroundLoop
from worker.core.metrics import measured_task, watch_tasks

log = get_logger(__name__)

_LOCK = 0x0D15_BA7C
"""The advisory lock of the leading dispatcher."""

_SILENCE = "15s"
"""Postgres ends the leader's session, and with it the lock, after this long without a word."""

_LONGEST_RENEWAL_WAIT = timedelta(seconds=5)


@dataclass(frozen=True)
class PeriodicTask:
    """Something that the leader does again and again."""

    name: str
    """In metrics and log lines."""
    perform: Callable[[], object]
    """May return how many rows it has changed, or the rows."""
    every: timedelta = timedelta(0)
    """At most this often; by default every round."""
    waits_for_renewals: bool = False
    """Not before it has led for a heartbeat: workers that lived through an outage come first."""


_Method = TypeVar("_Method", bound=Callable[..., object])


def periodic(
    *, every: timedelta = timedelta(0), waits_for_renewals: bool = False
) -> Callable[[_Method], _Method]:
    """Make a method a periodic task of the leader (see `PeriodicTask`), under its own name."""

    def mark(method: _Method) -> _Method:
        method.__dict__["periodic"] = {"every": every, "waits_for_renewals": waits_for_renewals}
        return method

    return mark


def periodic_tasks(*owners: object) -> list[PeriodicTask]:
    """The periodic tasks among the methods of these objects, as they are written."""
    return [
        PeriodicTask(name, getattr(owner, name), **method.__dict__["periodic"])
        for owner in owners
        for name, method in vars(type(owner)).items()
        if "periodic" in getattr(method, "__dict__", ())
    ]


class Dispatcher(BackgroundLoop):
    """Leads, or waits to lead."""

    def __init__(
        self,
        settings: Settings,
        engine: Engine,
        tasks: Sequence[PeriodicTask],
        may_be_leader: Callable[[], bool] = lambda: True,
    ) -> None:
        """`may_be_leader` false: it gives the lock up, or does not take it."""
        super().__init__("dispatcher", settings.dispatch_interval.total_seconds(), join=10)
        self._may_be_leader = may_be_leader
        self._renewal_wait = min(settings.heartbeat, _LONGEST_RENEWAL_WAIT).total_seconds()
        self._engine = engine
        self._tasks = tasks
        watch_tasks(task.name for task in tasks)
        self._lock_connection: Connection | None = None
        self._leader_since = 0.0
        self._performed: dict[str, float] = {}

    def is_leader(self) -> bool:
        """Whether this process holds the lock."""
        return self._lock_connection is not None

    def step(self) -> float | None:
        """One round, if this process may lead and gets the lock."""
        if not self._may_be_leader():
            self._give_up_lock()
        elif self._become_leader():
            self._round()
        return self._interval

    def failed(self, error: Exception) -> float | None:
        """Without Postgres the lock may be another's."""
        if isinstance(error, SQLAlchemyError):
            log.warning("dispatcher_lost_postgres", error=type(error).__name__)
            self._give_up_lock()
            return self._interval
        return super().failed(error)

    def finish(self) -> None:
        self._give_up_lock()

    def _round(self) -> None:
        """Every task that is due; one that fails does not keep the others from being done.

        Raises:
            SQLAlchemyError: Postgres is out of reach; the rest of the round is left out.
        """
        for task in self._tasks:
            if self.is_closing:
                return
            if not self._is_due(task):
                continue
            self._assert_leader()
            self._performed[task.name] = time.monotonic()
            try:
                with measured_task(task.name) as returned:
                    returned(task.perform())
            except Exception as error:
                if is_outage(error):
                    raise
                if isinstance(error, OUTAGES) and not isinstance(error, SQLAlchemyError):
                    log.warning("periodic_task_put_off", task=task.name, error=type(error).__name__)
                else:
                    log.exception("periodic_task_failed", task=task.name)

    def _is_due(self, task: PeriodicTask) -> bool:
        now = time.monotonic()
        if task.waits_for_renewals and now - self._leader_since < self._renewal_wait:
            return False
        last = self._performed.get(task.name)
        return last is None or now - last >= task.every.total_seconds()

    def _become_leader(self) -> bool:
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
        self._leader_since = time.monotonic()
        log.info("dispatcher_leads")
        return True

    def _assert_leader(self) -> None:
        """A dead connection has lost the lock, so it is asked before each task."""
        if self._lock_connection is not None:
            self._lock_connection.scalar(select(1))

    def _give_up_lock(self) -> None:
        if self._lock_connection is not None:
            self._lock_connection.invalidate()
            self._lock_connection.close()
            self._lock_connection = None
