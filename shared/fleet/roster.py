"""The roster in Redis: one key for each live worker, which expires, and an index of their names.

The index is a sorted set (scored by the time of the last announcement) that is read in one go;
looking for the keys by pattern would walk through every key that Redis has.
"""

import time
from typing import Any, Protocol

from shared.fleet.announcement import WorkerAnnouncement, parse
from shared.queue import names

_FORGET_SECONDS = 3600
"""A name that was not heard of for so long leaves the index. Generous: clocks differ."""


class _Pipeline(Protocol):
    def set(self, name: str, value: str, *, px: int) -> Any: ...
    def zadd(self, name: str, mapping: dict[str, float]) -> Any: ...
    def zremrangebyscore(self, name: str, min: Any, max: Any) -> Any: ...  # noqa: A002 - redis-py's
    def delete(self, name: str) -> Any: ...
    def zrem(self, name: str, value: str) -> Any: ...


class _Redis(Protocol):
    def zrange(self, name: str, start: int, end: int) -> Any: ...
    def mget(self, keys: list[str]) -> Any: ...


def announce(pipeline: _Pipeline, said: WorkerAnnouncement) -> None:
    """Queue the announcement on a pipeline; the caller executes it."""
    now = time.time()
    key = names.worker_key(said.name)
    pipeline.set(key, said.model_dump_json(), px=int(said.ttl_seconds * 1000))
    pipeline.zadd(names.WORKERS, {said.name: now})
    pipeline.zremrangebyscore(names.WORKERS, "-inf", now - _FORGET_SECONDS)


def withdraw(pipeline: _Pipeline, name: str) -> None:
    """Queue the end of a worker's announcement."""
    pipeline.delete(names.worker_key(name))
    pipeline.zrem(names.WORKERS, name)


def read(client: _Redis) -> list[WorkerAnnouncement]:
    """The live workers, for who may block: workers themselves.

    Raises:
        redis.RedisError: Redis cannot be reached.
    """
    found = [_text(name) for name in client.zrange(names.WORKERS, 0, -1)]
    return parse(client.mget([names.worker_key(name) for name in found])) if found else []


def _text(name: bytes | str) -> str:
    return name.decode(errors="replace") if isinstance(name, bytes) else name
