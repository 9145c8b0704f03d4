"""Postgres: connections, the base of every table, and queries that are built once."""

import select
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from datetime import datetime
from functools import lru_cache
from typing import Annotated, Any, Generic, ParamSpec, TypeVar, cast
from uuid import UUID

from sqlalchemy import (
    BindParameter,
    ColumnElement,
    Connection,
    DateTime,
    Engine,
    MetaData,
    and_,
    bindparam,
    create_engine,
    event,
    func,
    text,
)
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.dialects.postgresql.psycopg import PGDialect_psycopg
from sqlalchemy.exc import DBAPIError, DisconnectionError, InterfaceError, OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeout
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine
from sqlalchemy.orm import (
    DeclarativeBase,
    InstrumentedAttribute,
    Session,
    mapped_column,
    sessionmaker,
)
from sqlalchemy.pool import ConnectionPoolEntry
from sqlalchemy.sql.selectable import Select

from shared.core.ids import new_id
from shared.core.metrics import watch_database
from shared.core.settings import Settings, SettingsError

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
    trip. Callers that retry after an outage can do without.

    Raises:
        SettingsError: the database is a pooler, which loses the locks of sessions.
    """
    if settings.database_pooler:
        raise SettingsError("workers need Postgres itself: unset DARKROOM_DATABASE_POOLER")
    engine = create_engine(
        settings.database_url.get_secret_value(),
        pool_size=pool_size or settings.database_pool_size,
        max_overflow=0,
        pool_timeout=30,
        pool_pre_ping=pre_ping,
        connect_args=_CONNECT_ARGS,
    )
    event.listen(engine, "checkout", _renew_lost)
    watch_database(engine)
    return engine


def open_async_engine(settings: Settings) -> AsyncEngine:
    """A pooled asynchronous engine, for the API.

    A transaction begins with a BEGIN of its own, which can go out with what comes next: psycopg
    waits for the answer to one that it sends by itself.
    """
    connect_args: dict[str, object] = {**_CONNECT_ARGS, "autocommit": True}
    if settings.database_pooler:
        # The next transaction may find another session: nothing is prepared in one, and what
        # `_SESSION` says is said by the role (docs/operations.md).
        del connect_args["options"]
        connect_args["prepare_threshold"] = None
    engine = create_async_engine(
        settings.database_url.get_secret_value(),
        pool_size=settings.database_pool_size,
        max_overflow=0,
        pool_timeout=settings.database_timeout.total_seconds(),
        pool_pre_ping=False,
        connect_args=connect_args,
    )
    event.listen(engine.sync_engine, "checkout", _renew_lost)
    watch_database(engine.sync_engine)
    return engine


_HANGUP = getattr(select, "POLLRDHUP", select.POLLHUP)  # the first is Linux's


def _renew_lost(_: object, record: ConnectionPoolEntry, __: object) -> None:
    """Have SQLAlchemy replace a connection whose other end hung up while it was idle: after an
    outage each would fail a request. It costs a system call, where `pre_ping` costs a round trip.
    """
    if "was used" not in record.info:
        record.info["was used"] = True  # It was made for this use.
        return
    driver: Any = record.driver_connection
    poll = select.poll()
    if not driver.closed:
        poll.register(driver.fileno(), _HANGUP)
    if driver.closed or poll.poll(0):
        raise DisconnectionError


def session_factory(engine: Engine) -> sessionmaker[Session]:
    """Sessions whose objects stay readable after the commit."""
    return sessionmaker(engine, expire_on_commit=False)


@contextmanager
def autocommit(database: sessionmaker[Session]) -> Iterator[Session]:
    """A session whose every statement is a transaction of its own: one round trip, not three."""
    with database() as session:
        session.connection(execution_options={"isolation_level": "AUTOCOMMIT"})
        yield session


@contextmanager
def no_statement_timeout(engine: Engine) -> Iterator[Connection]:
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
    """Whether trying again later can help: Postgres is down, restarting, full, or was cut off.

    A deadlock and a timeout count, too: the transaction was rolled back whole. After an outage the
    outcome of a COMMIT is unknown; the statements of the database can all be asked again.
    """
    if isinstance(error, OperationalError | InterfaceError | PoolTimeout):
        return True
    if not isinstance(error, DBAPIError):
        return False
    return error.connection_invalidated or getattr(error.orig, "sqlstate", None) == _READ_ONLY


class Base(DeclarativeBase):
    """Constraint names follow one convention, so that migrations can name them."""

    metadata = MetaData(
        naming_convention={
            "ix": "ix_%(table_name)s_%(column_0_N_name)s",
            "uq": "uq_%(table_name)s_%(column_0_N_name)s",
            "ck": "ck_%(table_name)s_%(constraint_name)s",
            "fk": "fk_%(table_name)s_%(column_0_N_name)s_%(referred_table_name)s",
            "pk": "pk_%(table_name)s",
        }
    )


Id = Annotated[UUID, mapped_column(primary_key=True, default=new_id)]
Instant = Annotated[datetime, mapped_column(DateTime(timezone=True))]

CreatedAt = Annotated[
    datetime, mapped_column(DateTime(timezone=True), server_default=func.clock_timestamp())
]

Json = Annotated[dict[str, Any], mapped_column(JSONB)]


def sql_list(names: Iterable[str]) -> str:
    """What stands in the brackets of SQL's ``IN (…)``, for a constraint."""
    return ", ".join(f"'{name}'" for name in sorted(names))


def only(
    column: InstrumentedAttribute[str], value: str | InstrumentedAttribute[str]
) -> ColumnElement[bool]:
    """``column = value``, said as a range, for lists that are ordered by the column and then by id.

    With an equality Postgres may go through all rows by their primary key and throw away those of
    others, in the belief that the wanted ones are spread evenly: a session that rests takes as long
    as everything that came after it. A range in this order is served by the column's own index.
    """
    return and_(column >= value, column <= value)


# To build one takes several times as long as to run it, so those on the paths of every job and
# every search are kept, with names in place of their values.

P = ParamSpec("P")
S = TypeVar("S", bound=Select[*tuple[Any, ...]])
Given = tuple[S, dict[str, Any]]
DIALECT = PGDialect_psycopg()  # type: ignore[no-untyped-call]
_ONE_AT_A_TIME = threading.RLock()


class CachedQuery(Generic[P, S]):
    """A function that builds a statement, and what it has built for its latest arguments.

    A statement is compiled before any thread gets it. SQLAlchemy (2.1) fills some of a statement's
    indices of columns at its first compilation, without a lock: two threads that compile the same
    new one at once can end with SQL that joins a table to itself, and keep it for good.
    """

    def __init__(self, build: Callable[P, S], at_most: int | None) -> None:
        def build_and_compile(*args: P.args, **kwargs: P.kwargs) -> S:
            statement = build(*args, **kwargs)
            statement.compile(dialect=DIALECT)
            return statement

        cached = lru_cache(at_most)(build_and_compile)
        self._cached = cast("Callable[P, S]", cached)
        self._clear = cached.cache_clear

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> S:
        """The statement for these arguments, which must be hashable."""
        with _ONE_AT_A_TIME:
            return self._cached(*args, **kwargs)

    def clear(self) -> None:
        """Rebuild from now on."""
        with _ONE_AT_A_TIME:
            self._clear()


def cached_query(at_most: int | None = None) -> Callable[[Callable[P, S]], CachedQuery[P, S]]:
    """Keep what the function builds, for the latest `at_most` arguments where there may be many."""
    return lambda build: CachedQuery(build, at_most)


def param(name: str, type_: Any) -> BindParameter[Any]:
    """A value that comes with `given` or `with_params`."""
    return bindparam(f"given_{name}", type_=type_)


def given(statement: S, **values: Any) -> Given[S]:
    """A statement and the values of this time, to be executed with both: `execute(*given(…))`.

    SQLAlchemy then finds what it has compiled by the key that the statement keeps; of the copy that
    `with_params` makes it works that key out anew, which takes as long as to read a row.
    """
    return statement, {f"given_{name}": value for name, value in values.items()}


def with_params(statement: S, **values: Any) -> S:
    """The same for a statement that becomes part of another; otherwise `given` costs less."""
    return statement.params({f"given_{name}": value for name, value in values.items()})
