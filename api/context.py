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
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import psycopg
from fastapi import Depends, Request
from redis.asyncio import Redis
from sqlalchemy.exc import DBAPIError
from sqlalchemy.exc import TimeoutError as PoolTimeout
from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker

from api.core.errors import Problem
from api.core.fairness import Gates, acting_key
from api.core.principal import KeyCache, Principal
from api.core.publisher import Circuit, JobPublisher
from api.core.worker_roster import WorkerRoster
from shared.core import tenants
from shared.core.errors import StorageUnavailable
from shared.core.ids import MalformedId, Prefix, from_wire
from shared.core.logging import get_logger
from shared.core.model_catalog import ModelCatalog
from shared.core.quotas import RequestRates
from shared.core.settings import Settings
from shared.core.storage import Storage

if TYPE_CHECKING:
    from uuid import UUID

    from api.admin.service import QueueDepths
    from api.core.quotas import Pressure
    from api.core.streams import OpenAnswers
    from api.jobs.estimates import Estimates
    from api.jobs.following import Following
    from api.jobs.init_images import ImageFetcher
    from api.search.embedding import QueryVectors
    from api.search.service import Censuses

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
    gates: Gates
    """Of the pools below and of decoders: every use on behalf of a key goes through one."""
    sessions: async_sessionmaker[AsyncSession]
    redis: Redis
    """Quick commands: answers within 0.2 s or fails."""
    blocking_redis: Redis
    """Blocking reads; each holds a connection."""
    circuit: Circuit
    """Shared by all quick uses of Redis."""
    publisher: JobPublisher
    roster: WorkerRoster
    storage: Storage
    storage_threads: ThreadPoolExecutor
    decoder_threads: ThreadPoolExecutor
    fetcher: "ImageFetcher"
    keys: KeyCache
    rates: RequestRates
    pressure: "Pressure"
    vectors: "QueryVectors"
    censuses: "Censuses"
    estimates: "Estimates"
    queues: "QueueDepths"
    following: "Following"
    streams: "OpenAnswers"
    waits: "OpenAnswers"

    async def on_storage(
        self, work: Callable[..., T], *args: Any, seconds: float | None = None
    ) -> T:
        """Call storage, on threads of its own: while it hangs, nothing else waits for a thread.

        Raises:
            StorageUnavailable: no answer within `seconds`; the call itself goes on, unheard.
        """
        gate = self.gates.storage
        try:
            return await gate.run(self.storage_threads, acting_key.get(), seconds, work, *args)
        except TimeoutError:
            raise StorageUnavailable(f"no answer within {seconds} s") from None

    @asynccontextmanager
    async def transaction(self, seconds: float | None = None) -> AsyncIterator[AsyncSession]:
        """A transaction of no tenant, outside the second wall. Commits on leaving, or rolls back.

        Only the modules that `tests/unit/test_architecture.py` lists may open one.

        Only SQL belongs inside: `seconds` (default: `database_timeout`) covers it all.

        Raises:
            Problem: 503 when Postgres cannot be reached or does not answer in time.
        """
        loop = asyncio.get_running_loop()
        deadline = loop.time() + (seconds or self.settings.database_timeout.total_seconds())
        cut: asyncio.TimerHandle | None = None
        try:
            async with self.sessions() as session:
                async with asyncio.timeout_at(deadline):
                    connection = await (await session.connection()).get_raw_connection()
                cut = loop.call_at(deadline, _cut, connection.driver_connection)
                yield session
                await session.commit()
        except (PoolTimeout, TimeoutError) as error:
            raise _unavailable("timeout") from error
        except DBAPIError as error:
            if error.connection_invalidated or isinstance(error.orig, psycopg.OperationalError):
                raise _unavailable(type(error.orig).__name__) from error
            raise
        finally:
            if cut is not None:
                cut.cancel()

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
                await stack.enter_async_context(self.gates.database.turn(principal.key_id, seconds))
            except TimeoutError as error:
                raise _unavailable("timeout") from error
            left = max(0.001, seconds - (time.monotonic() - began))
            session = await stack.enter_async_context(self.transaction(left))
            await tenants.enable_rls(session, principal.tenant_id, settings)
            yield session

    @asynccontextmanager
    async def listing(self, principal: Principal, limit: int) -> AsyncIterator[None]:
        """Around reading a list: a key's long ones are read one after the other.

        Raises:
            Problem: 429 `too_many_at_once` when too many of the key's wait.
        """
        if limit <= _SHORT_LIST:
            yield
            return
        async with self.gates.lists.turn(principal.key_id):
            yield

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
                        self.gates.submissions.turn(principal.key_id, _QUEUEING_SECONDS)
                    )
                except TimeoutError:
                    raise Problem("too_many_at_once", headers={"Retry-After": "1"}) from None
            yield await stack.enter_async_context(self.tenant_transaction(principal, seconds))


def _cut(connection: Any) -> None:
    """Shut the socket of a connection whose time is up: whoever waits on it fails at once.

    Cancelling the wait instead would make psycopg ask the server to cancel the query, and wait ten
    more seconds for a server that hangs.
    """
    with (
        contextlib.suppress(psycopg.Error, OSError),
        socket.socket(fileno=os.dup(connection.fileno())) as end,
    ):
        end.shutdown(socket.SHUT_RDWR)


def _unavailable(reason: str) -> Problem:
    _log.warning("database unavailable", reason=reason)
    return Problem("database_unavailable", "The database did not answer in time.")


async def get_resources(request: Request) -> Resources:
    """The process's resources. Async, or FastAPI would send every request through a thread."""
    found: Resources = request.app.state.resources
    return found


Res = Annotated[Resources, Depends(get_resources)]


def parse_id(prefix: Prefix, text: str, thing: str) -> "UUID":
    """The UUID of a wire id in a path. A malformed id is the id of nothing: 404."""
    try:
        return from_wire(prefix, text)
    except MalformedId:
        raise Problem("not_found", f"There is no {thing} with this id.") from None
