"""The workers alive now, as they announce themselves; asked for at most every two seconds."""

import asyncio
import time

from redis.asyncio import Redis

from api.core.publisher import Circuit, RedisDown
from shared.core import broker
from shared.core.worker_registry import WorkerAnnouncement, parse

_FRESH_SECONDS = 2.0


class WorkerRoster:
    """What this process knows of the workers."""

    def __init__(self, redis: Redis, circuit: Circuit) -> None:
        self._redis = redis
        self._circuit = circuit
        self._workers: tuple[WorkerAnnouncement, ...] | None = None
        self._fresh_until = 0.0
        self._lock = asyncio.Lock()

    async def workers(self) -> tuple[WorkerAnnouncement, ...] | None:
        """Live workers, or None while Redis cannot say."""
        if time.monotonic() < self._fresh_until:
            return self._workers
        async with self._lock:
            if time.monotonic() < self._fresh_until:
                return self._workers
            self._workers = await self._ask()
            self._fresh_until = time.monotonic() + _FRESH_SECONDS
        return self._workers

    async def serves(self, model: str) -> bool | None:
        """Whether a live worker serves the model; None while Redis cannot say."""
        workers = await self.workers()
        if workers is None:
            return None
        return any(worker.serves(model) for worker in workers)

    async def families(self) -> dict[str, str]:
        """Model -> family, of the models that a live worker has loaded once."""
        return {
            model.name: model.family
            for worker in await self.workers() or ()
            for model in worker.models
            if model.family is not None
        }

    async def look(self, name: str | None = None) -> list[tuple[WorkerAnnouncement, float]]:
        """(announcement, seconds since it was made) as of now, in the order of the names.

        The seconds are Redis's: of how long an announcement stands, what is not left has passed.

        Raises:
            RedisDown: it cannot say.
        """
        if self._circuit.is_open:
            raise RedisDown
        return await self._circuit.call(self._read_with_lag(name))

    async def _ask(self) -> tuple[WorkerAnnouncement, ...] | None:
        if self._circuit.is_open:
            return None
        try:
            return await self._circuit.call(self._read())
        except RedisDown:
            return None

    async def _read(self) -> tuple[WorkerAnnouncement, ...]:
        keys = [broker.worker_key(name) for name in await self._names()]
        return tuple(parse(await self._redis.mget(keys))) if keys else ()

    async def _read_with_lag(self, name: str | None) -> list[tuple[WorkerAnnouncement, float]]:
        known = [name] if name is not None else await self._names()
        async with self._redis.pipeline(transaction=False) as pipeline:
            for each in known:
                pipeline.get(broker.worker_key(each))
                pipeline.pttl(broker.worker_key(each))
            answers = await pipeline.execute() if known else []
        found = [
            (said, max(0.0, said.ttl_seconds - left / 1000))
            for text, left in zip(answers[::2], answers[1::2], strict=True)
            for said in parse([text])
        ]
        return sorted(found, key=lambda pair: pair[0].name)

    async def _names(self) -> list[str]:
        return [str(name) for name in await self._redis.zrange(broker.WORKERS, 0, -1)]
