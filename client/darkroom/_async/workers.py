"""Workers: who makes the pictures, and who shall rest."""

from darkroom import wire
from darkroom._async.pages import AsyncPages
from darkroom._async.transport import AsyncTransport, Request
from darkroom.decoding import decode
from darkroom.types.workers import Worker


class AsyncWorkers:
    """`client.workers`: of all tenants, so it needs the scope `operator`. They go by name."""

    def __init__(self, transport: AsyncTransport) -> None:
        self._transport = transport

    def list(self) -> AsyncPages[Worker]:
        """Every live worker by name, and those told to rest when they come back."""
        return AsyncPages(self._transport, Request("GET", "/v1/workers"), Worker)

    async def get(self, worker: str) -> Worker:
        """One worker; `drain.drained_at` tells when one that was drained can be stopped."""
        return decode(Worker, await self._transport.json(Request("GET", _path(worker))))

    async def drain(self, worker: str) -> Worker:
        """Let it finish what it has and take no more. May be repeated."""
        asked = Request("POST", f"{_path(worker)}/drain", repeatable=True)
        return decode(Worker, await self._transport.json(asked))

    async def resume(self, worker: str) -> Worker:
        """Take back a drain. May be repeated."""
        asked = Request("POST", f"{_path(worker)}/resume", repeatable=True)
        return decode(Worker, await self._transport.json(asked))


def _path(worker: str) -> str:
    return f"/v1/workers/{wire.segment(worker)}"
