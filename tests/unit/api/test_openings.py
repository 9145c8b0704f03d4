"""Of a crowd of waits and streams a few are opened at a time, in turn between keys."""

import asyncio
from types import SimpleNamespace
from typing import Any

from starlette.types import Message, Receive, Scope, Send

from api.core.fairness import Gates
from api.core.principal import KeyCache
from api.core.streams import OpenAnswers, Openings
from shared.core.ids import new_id
from shared.core.keys import NewKey, new_key
from shared.core.tenants import ApiKey
from tests.unit.api.test_fairness import settle

LIMIT = 20


class Crowd:
    """The middleware before an application that opens what it is told to."""

    def __init__(self) -> None:
        self.inside: list[str] = []
        self.may_open = asyncio.Event()
        self.may_end = asyncio.Event()
        self.keys = KeyCache()
        self.app = Openings(self._app)
        self.resources = SimpleNamespace(
            keys=self.keys,
            gates=Gates(8, 2),
            waits=OpenAnswers("too_many_waits", LIMIT, 1000),
            streams=OpenAnswers("too_many_streams", LIMIT, 1000),
        )

    def key(self) -> NewKey:
        made = new_key()
        self.keys.put(
            ApiKey(id=made.id, tenant_id=new_id(), scopes=["jobs"], secret_hash=made.secret_hash)
        )
        return made

    async def ask(self, key: NewKey, path: str = "/v1/jobs/job_1/events") -> int:
        headers = [(b"authorization", f"Bearer {key.key}".encode()), (b"prefer", b"wait=9")]
        scope: dict[str, Any] = {
            "type": "http",
            "method": "GET",
            "path": path,
            "headers": headers,
            "client": ("127.0.0.1", 1),
            "app": SimpleNamespace(state=SimpleNamespace(resources=self.resources)),
            "key": key.id,
        }
        statuses = []

        async def send(message: Message) -> None:
            if message["type"] == "http.response.start":
                statuses.append(message["status"])

        await self.app(scope, _no_body, send)
        return int(statuses[0])

    async def _app(self, scope: Scope, _receive: Receive, send: Send) -> None:
        self.inside.append(scope["key"])
        await self.may_open.wait()
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await self.may_end.wait()
        await send({"type": "http.response.body", "body": b""})


async def _no_body() -> Message:
    return {"type": "http.request", "body": b"", "more_body": False}


def test_one_key_opens_few_at_once_and_another_is_let_in() -> None:
    async def trial() -> None:
        crowd = Crowd()
        flood, other = crowd.key(), crowd.key()
        tasks = [asyncio.create_task(crowd.ask(flood)) for _ in range(LIMIT)]
        await settle()
        assert crowd.inside == [flood.id] * 2
        tasks.append(asyncio.create_task(crowd.ask(other)))
        await settle()
        assert crowd.inside == [flood.id, flood.id, other.id]
        crowd.may_open.set()  # who is open takes no turn from those that are not
        for _ in range(LIMIT):
            await settle()
        assert len(crowd.inside) == LIMIT + 1
        crowd.may_end.set()
        assert await asyncio.gather(*tasks) == [200] * (LIMIT + 1)

    asyncio.run(trial())


def test_those_beyond_the_limit_are_refused_while_the_others_wait_for_their_turn() -> None:
    async def trial() -> None:
        crowd = Crowd()
        flood = crowd.key()
        for path in ("/v1/jobs/job_1/events", "/v1/jobs/job_1"):
            tasks = [asyncio.create_task(crowd.ask(flood, path)) for _ in range(3 * LIMIT)]
            await settle()
            refused = [task.result() for task in tasks if task.done()]
            assert refused == [429] * (2 * LIMIT)
            crowd.may_open.set()
            crowd.may_end.set()
            assert sorted(await asyncio.gather(*tasks)) == [200] * LIMIT + [429] * (2 * LIMIT)
            assert len(crowd.inside) == LIMIT
            crowd.inside.clear()
            crowd.may_open.clear()
            crowd.may_end.clear()

    asyncio.run(trial())
