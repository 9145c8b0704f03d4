# Generated from darkroom/_async by client/make_sync.py (`make client`). Do not edit.
"""Webhook endpoints, the log of deliveries, and the tenant's own secret."""

from collections.abc import Iterable
from datetime import datetime
from typing import TYPE_CHECKING, Literal

from darkroom import wire
from darkroom._sync.pages import Pages
from darkroom._sync.transport import Request, Transport
from darkroom.decoding import decode
from darkroom.types.webhooks import (
    Delivery,
    Endpoint,
    EndpointWithSecret,
    RedeliveryCount,
    TenantSecret,
)

if TYPE_CHECKING:
    from darkroom.wire import Identified


class Endpoints:
    """`client.webhooks.endpoints`: receivers that are told of everything of their kinds."""

    def __init__(self, transport: Transport) -> None:
        self._transport = transport

    def create(
        self,
        url: str,
        *,
        events: Iterable[str] | None = None,
        description: str | None = None,
        enabled: bool | None = None,
        signature: Literal["v1", "v1a"] | None = None,
    ) -> EndpointWithSecret:
        """Register a receiver; its `secret` is shown this once.

        Args:
            url: https, on port 443 or 80, unless the operator allows more.
            events: without them the ends of jobs and all that happens to batches.
            description: what it is for.
            enabled: False: register it, send nothing yet.
            signature: `v1` (the default) shares a secret, `v1a` signs with ed25519.

        Raises:
            TooManyWebhookEndpoints: the tenant has as many as it may have.
        """
        body = wire.body(
            {
                "url": url,
                "events": None if events is None else list(events),
                "description": description,
                "enabled": enabled,
                "signature": signature,
            }
        )
        asked = Request("POST", "/v1/webhook-endpoints", json=body)
        return decode(EndpointWithSecret, self._transport.json(asked))

    def list(self, *, page_size: int | None = None, after: str | None = None) -> Pages[Endpoint]:
        """Endpoints, newest first."""
        asked = Request("GET", "/v1/webhook-endpoints", wire.query({"limit": page_size}))
        return Pages(self._transport, asked, Endpoint, after)

    def get(self, endpoint: "str | Identified") -> Endpoint:
        """Without its secret; with the public keys of a v1a endpoint."""
        return decode(Endpoint, self._transport.json(Request("GET", self._path(endpoint))))

    def update(
        self,
        endpoint: "str | Identified",
        *,
        url: str | None = None,
        events: Iterable[str] | None = None,
        description: str | None = None,
        enabled: bool | None = None,
    ) -> Endpoint:
        """Change what is given. Disabling gives up the deliveries that wait for it."""
        body = wire.body(
            {
                "url": url,
                "events": None if events is None else list(events),
                "description": description,
                "enabled": enabled,
            }
        )
        asked = Request("PATCH", self._path(endpoint), json=body)
        return decode(Endpoint, self._transport.json(asked))

    def delete(self, endpoint: "str | Identified") -> None:
        """Delete it with its secrets and its part of the log."""
        self._transport.send(Request("DELETE", self._path(endpoint)))

    def rotate_secret(self, endpoint: "str | Identified") -> EndpointWithSecret:
        """A new secret; for 24 hours requests carry a signature of each."""
        asked = Request("POST", f"{self._path(endpoint)}/rotate-secret")
        return decode(EndpointWithSecret, self._transport.json(asked))

    def test(self, endpoint: "str | Identified") -> Delivery:
        """Send `endpoint.test`, also to a disabled one; get the delivery to see how it went."""
        asked = Request("POST", f"{self._path(endpoint)}/test")
        return decode(Delivery, self._transport.json(asked))

    def redeliver(
        self,
        endpoint: "str | Identified",
        *,
        since: datetime,
        until: datetime | None = None,
        state: Literal["failed", "succeeded", "all"] | None = None,
    ) -> RedeliveryCount:
        """Send again what it has missed in a time: what was given up, unless `state` says else."""
        query = wire.query({"since": since, "until": until, "state": state})
        asked = Request("POST", f"{self._path(endpoint)}/redeliver", query)
        return decode(RedeliveryCount, self._transport.json(asked))

    def _path(self, endpoint: "str | Identified") -> str:
        return f"/v1/webhook-endpoints/{wire.segment(endpoint)}"


class Deliveries:
    """`client.webhooks.deliveries`: the log, kept for 30 days."""

    def __init__(self, transport: Transport) -> None:
        self._transport = transport

    def list(
        self,
        *,
        endpoint: "str | Identified | None" = None,
        job: "str | Identified | None" = None,
        batch: "str | Identified | None" = None,
        state: str | Iterable[str] | None = None,
        event: str | Iterable[str] | None = None,
        page_size: int | None = None,
        after: str | None = None,
    ) -> Pages[Delivery]:
        """Deliveries, newest first, each with its attempts."""
        fields = {
            "endpoint_id": None if endpoint is None else wire.id_of(endpoint),
            "job_id": None if job is None else wire.id_of(job),
            "batch_id": None if batch is None else wire.id_of(batch),
            "state": wire.states(state),
            "event": wire.states(event),
            "limit": page_size,
        }
        asked = Request("GET", "/v1/webhook-deliveries", wire.query(fields))
        return Pages(self._transport, asked, Delivery, after)

    def get(self, delivery: "str | Identified") -> Delivery:
        """One delivery with its attempts."""
        return decode(Delivery, self._transport.json(Request("GET", self._path(delivery))))

    def redeliver(self, delivery: "str | Identified") -> Delivery:
        """Send it again at once, whatever became of it, with the same `webhook-id`."""
        asked = Request("POST", f"{self._path(delivery)}/redeliver")
        return decode(Delivery, self._transport.json(asked))

    def _path(self, delivery: "str | Identified") -> str:
        return f"/v1/webhook-deliveries/{wire.segment(delivery)}"


class TenantSecrets:
    """`client.webhooks.secret`: signs what goes to a URL that came with a job or batch."""

    def __init__(self, transport: Transport) -> None:
        self._transport = transport

    def get(self) -> TenantSecret:
        """The secret. It needs the scope to write, since whoever has it can sign."""
        return decode(TenantSecret, self._transport.json(Request("GET", "/v1/webhook-secret")))

    def rotate(self) -> TenantSecret:
        """A new one; the old one signs beside it for 24 hours."""
        asked = Request("POST", "/v1/webhook-secret/rotate")
        return decode(TenantSecret, self._transport.json(asked))


class Webhooks:
    """`client.webhooks`. What is received is verified by `darkroom.webhooks.verify`."""

    def __init__(self, transport: Transport) -> None:
        self.endpoints = Endpoints(transport)
        self.deliveries = Deliveries(transport)
        self.secret = TenantSecrets(transport)
