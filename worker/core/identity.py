"""A worker's name: stable over restarts, held by one living process at a time.

The name decides whose leases a restarted worker gives back, so two processes must never share
one. An advisory lock in Postgres, which dies with its connection, sees to that.
"""

import hashlib
import socket
import threading
import time

from sqlalchemy import Connection, Engine, func, select
from sqlalchemy.exc import SQLAlchemyError

from shared.core.logging import get_logger

log = get_logger(__name__)


_LOCK_CLASS = 0x0D51
"""Namespace of worker names among the two-key advisory locks."""


_FORMER_LIFE_SECONDS = 1.0
"""How long Postgres may take to notice that this worker's killed predecessor is gone."""


_KEEP_SECONDS = 2.0


class Identity:
    """A name, and the connection whose lock keeps it ours. A thread renews it after an outage."""

    def __init__(self, engine: Engine, base: str, name: str, connection: Connection) -> None:
        self.name = name
        self._engine = engine
        self._base = base
        self._connection: Connection | None = connection
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._keep, name="identity", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Give the name free."""
        self._closing.set()
        self._thread.join(timeout=5)
        self._let_go()

    def _keep(self) -> None:
        while not self._closing.wait(_KEEP_SECONDS):
            try:
                self.keep()
            except SQLAlchemyError as error:
                log.warning("name_not_locked", worker=self.name, error=type(error).__name__)

    def keep(self) -> None:
        """Make sure that the name is locked; take another one if it was lost to somebody.

        Raises:
            SQLAlchemyError: the ledger cannot be reached; the lock may be gone.
        """
        if self._connection is not None:
            try:
                self._connection.scalar(select(1))
                return
            except SQLAlchemyError:
                self._let_go()
                raise
        connection = _connect(self._engine)
        try:
            if not _try_lock(connection, self.name):
                former = self.name
                self.name = _first_free(connection, self._base)
                log.warning("name_lost", former=former, worker=self.name)
        except BaseException:
            connection.close()
            raise
        self._connection = connection

    def _let_go(self) -> None:
        if self._connection is not None:
            connection, self._connection = self._connection, None
            connection.invalidate()
            connection.close()


def take_name(engine: Engine, wanted: str | None, role: str) -> Identity:
    """Take `wanted` (or host name and role); where it is in use, the first free `name-2`, `-3`….

    Raises:
        SQLAlchemyError: the ledger cannot be reached.
    """
    base = wanted or f"{socket.gethostname()}-{role}"
    connection = _connect(engine)
    try:
        name = base if _try_lock_patiently(connection, base) else _first_free(connection, base)
    except BaseException:
        connection.close()
        raise
    return Identity(engine, base, name, connection)


def _connect(engine: Engine) -> Connection:
    return engine.connect().execution_options(isolation_level="AUTOCOMMIT")


def _try_lock_patiently(connection: Connection, name: str) -> bool:
    deadline = time.monotonic() + _FORMER_LIFE_SECONDS
    while not _try_lock(connection, name):
        if time.monotonic() >= deadline:
            return False
        time.sleep(0.05)
    return True


def _first_free(connection: Connection, base: str) -> str:
    number = 1
    while True:
        name = base if number == 1 else f"{base}-{number}"
        if _try_lock(connection, name):
            return name
        number += 1


def _try_lock(connection: Connection, name: str) -> bool:
    lock = func.pg_try_advisory_lock(_LOCK_CLASS, _lock_id(name))
    return bool(connection.scalar(select(lock)))


def _lock_id(name: str) -> int:
    digest = hashlib.sha256(name.encode()).digest()
    return int.from_bytes(digest[:4], "big", signed=True)
