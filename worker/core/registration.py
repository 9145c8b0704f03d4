"""A worker's name, held by one process at a time, and the heartbeat that shows it to others."""

import hashlib
import socket
import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime
from itertools import chain, count
from typing import Any

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry
from sqlalchemy import Connection, Engine, func, select
from sqlalchemy.exc import SQLAlchemyError

from shared.core import worker_registry
from shared.core.logging import get_logger
from shared.core.redis_clients import open_redis
from shared.core.settings import Settings, darkroom_version
from shared.core.worker_registry import WorkerHeartbeat
from worker.core.loop import BackgroundLoop

log = get_logger(__name__)

_LOCK_CLASS = 0x0D51
"""Namespace of worker names among the two-key advisory locks."""

_FORMER_LIFE_SECONDS = 1.0
"""How long Postgres may take to notice that this worker's killed predecessor is gone."""

_KEEP_SECONDS = 2.0


class Identity(BackgroundLoop):
    """A name, and the connection whose lock keeps it ours; renewed after an outage."""

    def __init__(self, engine: Engine, base: str, name: str, connection: Connection) -> None:
        super().__init__("identity", _KEEP_SECONDS, waits_first=True)
        self.name = name
        self._engine = engine
        self._base = base
        self._connection: Connection | None = connection
        self.start()

    def close(self) -> None:
        super().close()
        self._let_go()

    def step(self) -> float | None:
        self.keep()
        return self._interval

    def keep(self) -> None:
        """Make sure that the name is locked; take another one if it was lost to somebody.

        Raises:
            SQLAlchemyError: the database cannot be reached; the lock may be gone.
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
        SQLAlchemyError: the database cannot be reached.
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
    names = chain([base], (f"{base}-{number}" for number in count(2)))
    return next(name for name in names if _try_lock(connection, name))


def _try_lock(connection: Connection, name: str) -> bool:
    lock = func.pg_try_advisory_lock(_LOCK_CLASS, _lock_id(name))
    return bool(connection.scalar(select(lock)))


def _lock_id(name: str) -> int:
    digest = hashlib.sha256(name.encode()).digest()
    return int.from_bytes(digest[:4], "big", signed=True)


def redis_client(settings: Settings) -> "redis.Redis":
    """A client for what may be lost: it gives up a dead or half-open Redis within seconds.

    redis-py's own retries would hold a job's thread for half a minute, for an event.
    """
    return open_redis(
        settings,
        socket_timeout=2,
        socket_connect_timeout=2,
        socket_keepalive=True,
        health_check_interval=10,
        retry=Retry(NoBackoff(), 1),
    )


class Heartbeat(BackgroundLoop):
    """What the API shows of this worker: state, device, models. An outage of Redis harms nothing.

    A thread of its own renews it: a heartbeat or a job must not wait for Redis.
    """

    def __init__(
        self,
        settings: Settings,
        client: "redis.Redis",
        name: Callable[[], str],
        facts: Callable[[], dict[str, Any]],
    ) -> None:
        interval = settings.heartbeat.total_seconds()
        super().__init__("heartbeat", interval, join=0)
        self._redis = client
        self.facts = facts
        """What the heartbeat says now."""
        self._ttl = int(3 * interval) + 1
        self._started_at = datetime.now(UTC)
        self._name = name
        self._lock = threading.Lock()
        self._calls = self._written = 0

    def step(self) -> float | None:
        self.renew()
        return self._interval

    def renew(self) -> None:
        """Store it now; it lasts for three heartbeats.

        Whoever changes a fact calls this afterwards, so that the newest call has the last word.
        """
        with self._lock:
            self._calls += 1
            call = self._calls
        # Outside the lock: whoever gives the facts has locks of its own.
        heartbeat = WorkerHeartbeat(
            name=self._name(),
            started_at=self._started_at,
            ttl_seconds=self._ttl,
            version=darkroom_version(),
            **self.facts(),
        )
        try:
            with self._lock, self._redis.pipeline() as pipeline:
                if not self.is_closing and call > self._written:
                    worker_registry.store_heartbeat(pipeline, heartbeat)
                    pipeline.execute()
                    self._written = call
        except (redis.RedisError, OSError) as error:
            log.warning("heartbeat_failed", error=type(error).__name__)

    def close(self) -> None:
        super().close()
        try:
            with self._lock, self._redis.pipeline() as pipeline:
                worker_registry.remove_worker(pipeline, self._name())
                pipeline.execute()
        except (redis.RedisError, OSError) as error:
            log.warning("heartbeat_failed", error=type(error).__name__)
