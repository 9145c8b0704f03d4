"""Tell the system that this worker lives: a key in Redis that expires unless it is renewed."""

import json
import threading
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import redis

from shared.logging import get_logger
from shared.queue.names import worker_key
from shared.settings import Settings

log = get_logger(__name__)


class Announcement:
    """What the API shows of this worker: state, device, models. Redis being away harms nothing."""

    def __init__(
        self,
        settings: Settings,
        client: "redis.Redis",
        name: str,
        facts: Callable[[], dict[str, Any]],
    ) -> None:
        self._redis = client
        self._key = worker_key(name)
        self._facts = facts
        self._ttl = int(3 * settings.heartbeat.total_seconds()) + 1
        self._started_at = datetime.now(UTC).isoformat()
        self._name = name
        self._lock = threading.Lock()

    def renew(self) -> None:
        """Say it now; good for three heartbeats."""
        facts = {
            "name": self._name,
            "started_at": self._started_at,
            "seen_at": datetime.now(UTC).isoformat(),
            **self._facts(),
        }
        try:
            with self._lock:
                self._redis.set(self._key, json.dumps(facts), ex=self._ttl)
        except redis.RedisError as error:
            log.warning("announcement_failed", error=type(error).__name__)

    def withdraw(self) -> None:
        """This worker is leaving."""
        try:
            self._redis.delete(self._key)
        except redis.RedisError as error:
            log.warning("announcement_failed", error=type(error).__name__)
