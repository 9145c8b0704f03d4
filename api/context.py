"""What a request needs: the process's resources, and its tenant's transaction."""

import asyncio
import contextlib
import os
import socket
import time
from collections.abc import AsyncIterator, Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from typing import Annotated, Any, TypeVar, cast
from uuid import UUID

import psycopg
from fastapi import Depends, Request
from redis.asyncio import Redis
from sqlalchemy import select
from sqlalchemy.exc import DBAPIError
from sqlalchemy.exc import TimeoutError as PoolTimeout
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, async_sessionmaker
from sqlalchemy.sql.selectable import TypedReturnsRows

from api.core.errors import Problem, not_found
from api.core.fairness import FairSemaphores, OpenAnswers, acting_key
from api.core.live_workers import LiveWorkers
from api.core.principal import KeyCache, Principal
from api.core.publisher import CircuitBreaker, JobPublisher
from shared.core import tenants
from shared.core.errors import StorageUnavailable
from shared.core.ids import MalformedId, Prefix, decode_id
from shared.core.logging import get_logger
from shared.core.model_catalog import ModelCatalog
from shared.core.quotas import RequestRates
from shared.core.settings import Settings
from shared.core.storage import Storage

_log = get_logger(__name__)
T = TypeVar("T")
_QUEUEING_SECONDS = 30.0

_SHORT_LIST = 50
"""Entries; the default of every list."""


@dataclass
class Resources:
    """What one API process holds open, made once at start-up."""

    settings: Settings
    catalog: ModelCatalog
    semaphores: FairSemaphores
    """Of the pools below and of decoders: every use on behalf of a key goes through one."""
    engine: AsyncEngine
    sessions: async_sessionmaker[AsyncSession]
    redis: Redis
    """Quick commands: answers within 0.2 s or fails."""
    blocking_redis: Redis
    """Blocking reads; each holds a connection."""
    circuit_breaker: CircuitBreaker
    """Shared by all quick uses of Redis."""
    publisher: JobPublisher
    workers: LiveWorkers
    storage: Storage
    storage_threads: ThreadPoolExecutor
    decoder_threads: ThreadPoolExecutor
    keys: KeyCache
    rates: RequestRates
    streams: OpenAnswers
    waits: OpenAnswers
    of_slices: dict[type, Any]
    """What slices keep in the process, each by its class; see `get`."""
    _database_answered: float = 0.0
    """When Postgres last committed a transaction, by `time.monotonic()`."""

    def get(self, kind: type[T]) -> T:
        """What a slice keeps in this process: `api.app` makes one of each kind."""
        resource: T = self.of_slices[kind]
        return resource

    async def on_storage(
        self, work: Callable[..., T], *args: Any, seconds: float | None = None
    ) -> T:
        """Call storage, on threads of its own: while it hangs, nothing else waits for a thread.

        Raises:
            StorageUnavailable: no answer within `seconds`; the call itself continues, unheard.
        """
        semaphore = self.semaphores.storage
        try:
            return await semaphore.run(self.storage_threads, acting_key.get(), seconds, work, *args)
        except TimeoutError:
            raise StorageUnavailable(f"no answer within {seconds} s") from None

    @asynccontextmanager
    async def transaction(self, seconds: float | None = None) -> AsyncIterator[AsyncSession]:
        """A transaction of no tenant, outside row-level security. Commits, or rolls back on error.

        Only the modules that `tests/unit/test_architecture.py` lists may open one.

        Only SQL belongs inside: `seconds` (default: `database_timeout`) covers it all.

        Raises:
            CommitUnknown: Postgres did not answer the commit.
            Problem: 503 when Postgres cannot be reached or does not answer in time.
        """
        async with self._session(seconds) as session:
            await (await session.connection()).exec_driver_sql("BEGIN")
            yield session

    @asynccontextmanager
    async def _session(self, seconds: float | None) -> AsyncIterator[AsyncSession]:
        """As `transaction`, but for the BEGIN."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + (seconds or self.settings.database_timeout.total_seconds())
        cut: asyncio.TimerHandle | None = None
        sent = False
        try:
            async with self.sessions() as session:
                async with asyncio.timeout_at(deadline):
                    connection = await (await session.connection()).get_raw_connection()
                cut = loop.call_at(deadline, _cut, connection.driver_connection)
                yield session
                sent = True
                await session.commit()
                self._database_answered = time.monotonic()
        except (PoolTimeout, TimeoutError) as error:
            raise self.database_unavailable("timeout", sent=sent) from error
        except DBAPIError as error:
            if error.connection_invalidated or isinstance(error.orig, psycopg.OperationalError):
                reason = type(error.orig).__name__
                raise self.database_unavailable(reason, sent=sent) from error
            raise
        finally:
            if cut is not None:
                cut.cancel()

    def database_unavailable(self, reason: str, *, sent: bool = False) -> Problem:
        """The problem to raise. `sent`: a commit was on its way."""
        _log.warning("database_unavailable", reason=reason)
        self.semaphores.database_failed(self._database_answered, _no_answer)
        return CommitUnknown(*_NO_ANSWER) if sent else _no_answer()

    @asynccontextmanager
    async def tenant_transaction(
        self,
        principal: Principal,
        seconds: float | None = None,
        settings: Mapping[str, str] = tenants.NOTHING_ELSE,
    ) -> AsyncIterator[AsyncSession]:
        """The transaction of a request: all SQL on behalf of a tenant runs in one of these.

        `settings` of Postgres hold within it. Its key waits for its turn with the connections.
        """
        seconds = seconds or self.settings.database_timeout.total_seconds()
        began = time.monotonic()
        async with AsyncExitStack() as stack:
            try:
                await stack.enter_async_context(
                    self.semaphores.database.turn(principal.key_id, seconds)
                )
            except TimeoutError as error:
                raise _no_answer() from error
            left = max(0.001, seconds - (time.monotonic() - began))
            session = await stack.enter_async_context(self._session(left))
            await tenants.begin_as_tenant(session, principal.tenant_id, settings)
            yield session

    @asynccontextmanager
    async def group_connection(self) -> AsyncIterator["psycopg.AsyncConnection"]:
        """For a transaction of requests of several keys, on the bare driver; whoever uses it begins
        it, enters each tenant, and commits. Rolled back unless it did.

        Raises:
            Problem: 503 when Postgres does not answer in time.
            DBAPIError: it cannot be reached.
        """
        seconds = self.settings.database_timeout.total_seconds()
        loop = asyncio.get_running_loop()
        deadline = loop.time() + seconds
        cut: asyncio.TimerHandle | None = None
        try:
            async with AsyncExitStack() as stack:
                await stack.enter_async_context(self.semaphores.database.turn("", seconds))
                async with asyncio.timeout_at(deadline):
                    connection = await stack.enter_async_context(self.engine.connect())
                    held = await connection.get_raw_connection()
                driver = cast("psycopg.AsyncConnection", held.driver_connection)
                cut = loop.call_at(deadline, _cut, driver)
                try:
                    yield driver
                except psycopg.Error as error:
                    if error.sqlstate is None or driver.closed:
                        # SQLAlchemy knows a lost connection, and renews its pool.
                        with contextlib.suppress(DBAPIError):
                            await connection.execute(select(1))
                    else:
                        await driver.rollback()
                    if loop.time() >= deadline:
                        raise TimeoutError from error
                    raise
                except BaseException:
                    await connection.invalidate()  # what it would answer next, nobody knows
                    raise
                self._database_answered = time.monotonic()
        except (PoolTimeout, TimeoutError) as error:
            raise self.database_unavailable("timeout") from error
        finally:
            if cut is not None:
                cut.cancel()

    @asynccontextmanager
    async def list_transaction(
        self,
        principal: Principal,
        limit: int,
        seconds: float | None = None,
        settings: Mapping[str, str] = tenants.NOTHING_ELSE,
    ) -> AsyncIterator[AsyncSession]:
        """A tenant's transaction to read a list: a key's long ones are read one after the other.

        Raises:
            Problem: 429 `too_many_at_once` when too many of the key's wait.
        """
        async with AsyncExitStack() as stack:
            if limit > _SHORT_LIST:
                turn = self.semaphores.lists.turn(principal.key_id)
                await stack.enter_async_context(turn)
            transaction = self.tenant_transaction(principal, seconds, settings)
            yield await stack.enter_async_context(transaction)

    @asynccontextmanager
    async def queueing_transaction(
        self, principal: Principal, seconds: float | None = None
    ) -> AsyncIterator[AsyncSession]:
        """A tenant's transaction that queues work: one at a time for a key with quotas.

        Otherwise its submissions would wait for each other in Postgres, each with a connection.

        Raises:
            Problem: also 429 `too_many_at_once` when too many of the key's submissions wait.
        """
        async with AsyncExitStack() as stack:
            if principal.quotas.limit_the_queue:
                try:
                    await stack.enter_async_context(
                        self.semaphores.submissions.turn(principal.key_id, _QUEUEING_SECONDS)
                    )
                except TimeoutError:
                    raise Problem("too_many_at_once", headers={"Retry-After": "1"}) from None
            yield await stack.enter_async_context(self.tenant_transaction(principal, seconds))


def _cut(connection: Any) -> None:
    """Shut the socket of a connection whose time is up, so that waiting on it fails at once.

    Cancelling the wait instead would make psycopg ask the server to cancel the query, and wait ten
    more seconds for a server that hangs.
    """
    with (
        contextlib.suppress(psycopg.Error, OSError),
        socket.socket(fileno=os.dup(connection.fileno())) as end,
    ):
        end.shutdown(socket.SHUT_RDWR)


_NO_ANSWER = "database_unavailable", "The database did not answer in time."


def _no_answer() -> Problem:
    return Problem(*_NO_ANSWER)


class CommitUnknown(Problem):
    """The database is unavailable, and may have committed: what the rows name has to be kept."""


async def get_resources(request: Request) -> Resources:
    """The process's resources. Async, or FastAPI would send every request through a thread."""
    resources: Resources = request.app.state.resources
    return resources


Res = Annotated[Resources, Depends(get_resources)]


def parse_id(prefix: Prefix, text: str, thing: str) -> UUID:
    """The UUID of a wire id in a path. A malformed id is the id of nothing: 404."""
    try:
        return decode_id(prefix, text)
    except MalformedId:
        raise not_found(thing) from None


async def require_row(session: AsyncSession, statement: TypedReturnsRows[T], thing: str) -> T:
    """The statement's one row, of one column.

    Raises:
        Problem: 404 when there is none.
    """
    row = (await session.scalars(statement)).one_or_none()
    if row is None:
        raise not_found(thing)
    return row
