"""Connections to Postgres: one driver, the same statements, async in the API, sync in workers."""

from collections.abc import Iterator
from contextlib import contextmanager

from sqlalchemy import Connection, Engine, create_engine, text
from sqlalchemy.exc import DBAPIError, InterfaceError, OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeout
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine
from sqlalchemy.orm import Session, sessionmaker

from shared.metrics.dependencies import watch_database
from shared.settings import Settings

_SESSION = {
    # A statement in this system takes milliseconds; one that takes 30 s is a fault.
    "statement_timeout": "30s",
    # Less than a lease: a process frozen inside a transaction must not keep its row locks longer.
    "idle_in_transaction_session_timeout": "15s",
    # The server, too, notices a vanished client within seconds: its locks are others' waiting.
    "tcp_keepalives_idle": "5",
    "tcp_keepalives_interval": "2",
    "tcp_keepalives_count": "3",
    "client_connection_check_interval": "5s",
}

_CONNECT_ARGS = {
    "connect_timeout": 2,
    "application_name": "darkroom",
    # A half-open connection is noticed within seconds instead of the kernel's two hours.
    "keepalives_idle": 5,
    "keepalives_interval": 2,
    "keepalives_count": 3,
    "tcp_user_timeout": 15_000,
    "options": " ".join(f"-c {name}={value}" for name, value in _SESSION.items()),
}

_READ_ONLY = "25006"
"""SQLSTATE of a write to a standby: what a failover looks like from a client that came early."""


def open_engine(
    settings: Settings, pool_size: int | None = None, *, pre_ping: bool = True
) -> Engine:
    """A pooled synchronous engine, for workers and commands.

    `pre_ping` asks at each transaction whether the connection still lives, at the price of a round
    trip. Who tries again after an outage anyway can do without.
    """
    engine = create_engine(
        settings.database_url.get_secret_value(),
        pool_size=pool_size or settings.database_pool_size,
        max_overflow=0,
        pool_timeout=30,
        pool_pre_ping=pre_ping,
        connect_args=_CONNECT_ARGS,
    )
    watch_database(engine)
    return engine


def open_async_engine(settings: Settings) -> AsyncEngine:
    """A pooled asynchronous engine, for the API."""
    engine = create_async_engine(
        settings.database_url.get_secret_value(),
        pool_size=settings.database_pool_size,
        max_overflow=0,
        pool_timeout=settings.database_timeout.total_seconds(),
        pool_pre_ping=False,
        connect_args=_CONNECT_ARGS,
    )
    watch_database(engine.sync_engine)
    return engine


def session_factory(engine: Engine) -> sessionmaker[Session]:
    """Sessions whose objects stay readable after the commit."""
    return sessionmaker(engine, expire_on_commit=False)


@contextmanager
def one_statement(database: sessionmaker[Session]) -> Iterator[Session]:
    """A session whose every statement is a transaction of its own: one round trip, not three."""
    with database() as session:
        session.connection(execution_options={"isolation_level": "AUTOCOMMIT"})
        yield session


@contextmanager
def unhurried(engine: Engine) -> Iterator[Connection]:
    """A connection in autocommit without the limit on a statement's time: to build an index takes
    minutes where there are many rows."""
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.execute(text("SET statement_timeout = 0"))
        try:
            yield connection
        finally:
            # The next user of the connection is to have the limit again.
            connection.execute(text("RESET statement_timeout"))


def is_outage(error: BaseException) -> bool:
    """Whether trying again later can help: Postgres is away, restarting, full, or was cut off.

    A deadlock and a timeout count, too: the transaction was rolled back whole. After an outage the
    outcome of a COMMIT is unknown; the statements of the ledger can all be asked again.
    """
    if isinstance(error, OperationalError | InterfaceError | PoolTimeout):
        return True
    if not isinstance(error, DBAPIError):
        return False
    return error.connection_invalidated or getattr(error.orig, "sqlstate", None) == _READ_ONLY
