"""Tell the system that this worker lives: a key in Redis that expires unless it is renewed."""

import threading
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from shared.core import worker_registry
from shared.core.logging import get_logger
from shared.core.settings import Settings
from shared.core.worker_registry import WorkerAnnouncement
from worker.jobs.receipt import darkroom_version

log = get_logger(__name__)


def redis_client(settings: Settings) -> "redis.Redis":
    """A client for what may be lost: it gives up a dead or half-open Redis within seconds.

    redis-py's own retries would hold a job's thread for half a minute, for an event.
    """
    return redis.Redis.from_url(
        settings.redis_url.get_secret_value(),
        socket_timeout=2,
        socket_connect_timeout=2,
        socket_keepalive=True,
        health_check_interval=10,
        retry=Retry(NoBackoff(), 1),
    )


class Announcement:
    """What the API shows of this worker: state, device, models. Redis being away harms nothing.

    A thread of its own renews it: a heartbeat or a job must not wait for Redis.
    """

    def __init__(
        self,
        settings: Settings,
        client: "redis.Redis",
        name: Callable[[], str],
        facts: Callable[[], dict[str, Any]],
    ) -> None:
        self._redis = client
        self._facts = facts
        self._interval = settings.heartbeat.total_seconds()
        self._ttl = int(3 * self._interval) + 1
        self._started_at = datetime.now(UTC)
        self._name = name
        self._lock = threading.Lock()
        self._calls = self._said = 0
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._run, name="announce", daemon=True)

    def start(self) -> None:
        """Say it now and at every heartbeat."""
        self._thread.start()

    def renew(self) -> None:
        """Say it now; good for three heartbeats.

        Whoever changes a fact calls this afterwards, so that the newest call has the last word.
        """
        with self._lock:
            self._calls += 1
            call = self._calls
        # Outside the lock: whoever gives the facts has locks of its own.
        said = WorkerAnnouncement(
            name=self._name(),
            started_at=self._started_at,
            ttl_seconds=self._ttl,
            version=darkroom_version(),
            **self._facts(),
        )
        try:
            with self._lock, self._redis.pipeline() as pipeline:
                if not self._closing.is_set() and call > self._said:
                    worker_registry.announce(pipeline, said)
                    pipeline.execute()
                    self._said = call
        except (redis.RedisError, OSError) as error:
            log.warning("announcement_failed", error=type(error).__name__)

    def close(self) -> None:
        """This worker is leaving."""
        self._closing.set()
        try:
            with self._lock, self._redis.pipeline() as pipeline:
                worker_registry.withdraw(pipeline, self._name())
                pipeline.execute()
        except (redis.RedisError, OSError) as error:
            log.warning("announcement_failed", error=type(error).__name__)

    def facts(self) -> dict[str, Any]:
        """What is announced, as it is now."""
        return self._facts()

    def _run(self) -> None:
        while not self._closing.is_set():
            try:
                self.renew()
            except Exception:
                log.exception("announcement_failed")
            self._closing.wait(self._interval)
