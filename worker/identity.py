"""A worker's name: stable over restarts, held by one living process at a time.

The name decides whose leases a restarted worker gives back, so two processes must never share
one. An advisory lock in Postgres, which dies with its connection, sees to that.
"""

import hashlib
import socket

from sqlalchemy import Connection, Engine, func, select

_LOCK_CLASS = 0x0D51
"""Namespace of worker names among the two-key advisory locks."""


class Identity:
    """A name and the connection whose lock keeps it ours."""

    def __init__(self, name: str, connection: Connection) -> None:
        self.name = name
        self._connection = connection

    def close(self) -> None:
        """Give the name free."""
        self._connection.invalidate()
        self._connection.close()


def take_name(engine: Engine, wanted: str | None, role: str) -> Identity:
    """Take `wanted` (or host name and role); where it is in use, the first free `name-2`, `-3`….

    Raises:
        SQLAlchemyError: the ledger cannot be reached.
    """
    base = wanted or f"{socket.gethostname()}-{role}"
    connection = engine.connect().execution_options(isolation_level="AUTOCOMMIT")
    number = 1
    while True:
        name = base if number == 1 else f"{base}-{number}"
        if connection.scalar(select(func.pg_try_advisory_lock(_LOCK_CLASS, _lock_id(name)))):
            return Identity(name, connection)
        number += 1


def _lock_id(name: str) -> int:
    digest = hashlib.sha256(name.encode()).digest()
    return int.from_bytes(digest[:4], "big", signed=True)
