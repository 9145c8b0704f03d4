"""The workers alive now, by their heartbeats; read at most every two seconds."""

import asyncio
import time
from collections.abc import Mapping

from redis.asyncio import Redis

from api.core.publisher import CircuitBreaker, RedisDown
from shared.core import broker
from shared.core.worker_registry import WorkerHeartbeat, parse

_FRESH_SECONDS = 2.0


class LiveWorkers:
    """What this process knows of the workers."""

    def __init__(
        self, redis: Redis, circuit_breaker: CircuitBreaker, families: Mapping[str, str]
    ) -> None:
        """`families` are those that the catalogue knows: model -> family."""
        self._redis = redis
        self._circuit_breaker = circuit_breaker
        self._workers: tuple[WorkerHeartbeat, ...] | None = None
        self._families = dict(families)
        self._fresh_until = 0.0
        self._lock = asyncio.Lock()

    async def workers(self) -> tuple[WorkerHeartbeat, ...] | None:
        """Live workers, or None while Redis cannot say."""
        if time.monotonic() < self._fresh_until:
            return self._workers
        async with self._lock:
            if time.monotonic() < self._fresh_until:
                return self._workers
            try:
                self._workers = await self._circuit_breaker.call(self._read)
            except RedisDown:
                self._workers = None
            self._fresh_until = time.monotonic() + _FRESH_SECONDS
        return self._workers

    async def serves(self, model: str) -> bool | None:
        """Whether a live worker serves the model; None while Redis cannot say."""
        workers = await self.workers()
        if workers is None:
            return None
        return any(worker.serves(model) for worker in workers)

    async def families(self) -> Mapping[str, str]:
        """Model -> family, as the catalogue or any worker that was ever seen has said."""
        for worker in await self.workers() or ():
            for model in worker.models:
                if model.family is not None:
                    self._families[model.name] = model.family
        return self._families

    async def read_now(self, name: str | None = None) -> list[tuple[WorkerHeartbeat, float]]:
        """(heartbeat, seconds since it was sent) as of now, in the order of the names.

        The seconds are Redis's: of a heartbeat's time to live, what is not left has passed.

        Raises:
            RedisDown: it cannot say.
        """
        return await self._circuit_breaker.call(self._read_with_lag, name)

    async def _read(self) -> tuple[WorkerHeartbeat, ...]:
        keys = [broker.worker_key(name) for name in await self._names()]
        return tuple(parse(await self._redis.mget(keys))) if keys else ()

    async def _read_with_lag(self, name: str | None) -> list[tuple[WorkerHeartbeat, float]]:
        known = [name] if name is not None else await self._names()
        async with self._redis.pipeline(transaction=False) as pipeline:
            for each in known:
                pipeline.get(broker.worker_key(each))
                pipeline.pttl(broker.worker_key(each))
            answers = await pipeline.execute() if known else []
        heartbeats = [
            (heartbeat, max(0.0, heartbeat.ttl_seconds - left / 1000))
            for text, left in zip(answers[::2], answers[1::2], strict=True)
            for heartbeat in parse([text])
        ]
        return sorted(heartbeats, key=lambda pair: pair[0].name)

    async def _names(self) -> list[str]:
        return [str(name) for name in await self._redis.zrange(broker.WORKERS, 0, -1)]
