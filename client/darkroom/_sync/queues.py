# Generated from darkroom/_async by client/make_sync.py (`make client`). Do not edit.
"""Queues: how much waits, and for how long."""

from darkroom._sync.pages import Pages
from darkroom._sync.transport import Request, Transport
from darkroom.types.queues import QueueDepth


class Queues:
    """`client.queues`: of all tenants, so it needs the scope `operator`."""

    def __init__(self, transport: Transport) -> None:
        self._transport = transport

    def list(self) -> Pages[QueueDepth]:
        """Both lanes of every model, those without jobs too."""
        return Pages(self._transport, Request("GET", "/v1/queues"), QueueDepth)
