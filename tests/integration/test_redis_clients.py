"""Clients of Redis and connections that were closed while nobody used them."""

import asyncio
from typing import Any

import redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff

from shared.core.redis_clients import open_async_redis
from shared.core.settings import Settings

NAME = "idle-in-this-test"
AT_ONCE = 6


def test_connections_that_were_closed_while_idle_cost_no_call(
    settings: Settings, redis_client: "redis.Redis"
) -> None:
    def its_connections() -> list[dict[str, Any]]:
        return [one for one in redis_client.client_list() if one["name"] == NAME]

    async def trial() -> None:
        client = open_async_redis(settings, client_name=NAME, retry=Retry(NoBackoff(), 0))
        nobody = (client.blpop([f"nothing-{n}"], timeout=0.3) for n in range(AT_ONCE))
        await asyncio.gather(*nobody)
        before = its_connections()
        assert len(before) == AT_ONCE
        for connection in before:
            redis_client.client_kill(connection["addr"])
        pool: Any = client.connection_pool
        async with asyncio.timeout(20):
            for connection in pool._available_connections:
                assert await connection._reader.read() == b"", "it was not closed"
        assert await asyncio.gather(*(client.ping() for _ in range(AT_ONCE))) == [True] * AT_ONCE
        await client.aclose()

    asyncio.run(trial())
