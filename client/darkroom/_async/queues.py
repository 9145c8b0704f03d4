"""Queues: how much waits, and for how long."""

from darkroom._async.pages import AsyncPages
from darkroom._async.transport import AsyncTransport, Request
from darkroom.types.queues import QueueDepth


class AsyncQueues:
    """`client.queues`: of all tenants, so it needs the scope `operator`."""

    def __init__(self, transport: AsyncTransport) -> None:
        self._transport = transport

    def list(self) -> AsyncPages[QueueDepth]:
        """Both lanes of every model, those without jobs too."""
        return AsyncPages(self._transport, Request("GET", "/v1/queues"), QueueDepth)
