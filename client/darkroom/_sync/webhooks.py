# Generated from darkroom/_async by client/make_sync.py (`make client`). Do not edit.
"""Webhook endpoints, the delivery log, and the tenant's own secret."""

from collections.abc import Iterable
from datetime import datetime
from typing import Literal

from darkroom import encoding
from darkroom._sync.resource import Pages, Resource
from darkroom._sync.transport import Request, Transport
from darkroom.encoding import Identified
from darkroom.types.webhooks import (
    Delivery,
    Endpoint,
    EndpointWithSecret,
    RedeliveryCount,
    TenantSecret,
)


class Endpoints(Resource):
    """`client.webhooks.endpoints`: registered receivers of events."""

    _path = "/v1/webhook-endpoints"

    def create(
        self,
        url: str,
        *,
        events: Iterable[str] | None = None,
        description: str | None = None,
        enabled: bool | None = None,
        signature: Literal["v1", "v1a"] | None = None,
    ) -> EndpointWithSecret:
        """Register a receiver; its `secret` is shown only once.

        Args:
            url: https, on port 443 or 80, unless the operator allows more.
            events: by default the ends of jobs and all events of batches.
            description: what it is for.
            enabled: False: register it without sending anything yet.
            signature: `v1` (the default) shares a secret, `v1a` signs with ed25519.

        Raises:
            TooManyWebhookEndpoints: the tenant has as many as it may have.
        """
        fields = {
            "url": url,
            "events": events,
            "description": description,
            "enabled": enabled,
            "signature": signature,
        }
        return self._post(EndpointWithSecret, self._path, json=fields)

    def list(self, *, page_size: int | None = None, after: str | None = None) -> Pages[Endpoint]:
        """Endpoints, newest first."""
        return self._list(Endpoint, self._path, page_size=page_size, after=after)

    def get(self, endpoint: str | Identified) -> Endpoint:
        """Without its secret; with the public keys of a v1a endpoint."""
        return self._get(Endpoint, self._at(endpoint))

    def update(
        self,
        endpoint: str | Identified,
        *,
        url: str | None = None,
        events: Iterable[str] | None = None,
        description: str | None = None,
        enabled: bool | None = None,
    ) -> Endpoint:
        """Change the given fields. Disabling it drops its pending deliveries."""
        fields = {"url": url, "events": events, "description": description, "enabled": enabled}
        request = Request("PATCH", self._at(endpoint), json=encoding.body(fields))
        return self._transport.fetch(Endpoint, request)

    def delete(self, endpoint: str | Identified) -> None:
        """Delete it, with its secrets and its delivery log."""
        self._transport.send(Request("DELETE", self._at(endpoint)))

    def rotate_secret(self, endpoint: str | Identified) -> EndpointWithSecret:
        """Make a new secret; for 24 hours requests are signed with both."""
        return self._post(EndpointWithSecret, self._at(endpoint, "rotate-secret"))

    def test(self, endpoint: str | Identified) -> Delivery:
        """Send `endpoint.test`, even to a disabled one; get the delivery to see how it went."""
        return self._post(Delivery, self._at(endpoint, "test"))

    def redeliver(
        self,
        endpoint: str | Identified,
        *,
        since: datetime,
        until: datetime | None = None,
        state: Literal["failed", "succeeded", "all"] | None = None,
    ) -> RedeliveryCount:
        """Resend the deliveries of a time range: failed ones, unless `state` says otherwise."""
        query = {"since": since, "until": until, "state": state}
        return self._post(RedeliveryCount, self._at(endpoint, "redeliver"), query=query)


class Deliveries(Resource):
    """`client.webhooks.deliveries`: the log, kept for 30 days."""

    _path = "/v1/webhook-deliveries"

    def list(
        self,
        *,
        endpoint: str | Identified | None = None,
        job: str | Identified | None = None,
        batch: str | Identified | None = None,
        state: str | Iterable[str] | None = None,
        event: str | Iterable[str] | None = None,
        page_size: int | None = None,
        after: str | None = None,
    ) -> Pages[Delivery]:
        """Deliveries, newest first, each with its attempts."""
        return self._list(
            Delivery,
            self._path,
            page_size=page_size,
            after=after,
            endpoint_id=None if endpoint is None else encoding.id_of(endpoint),
            job_id=None if job is None else encoding.id_of(job),
            batch_id=None if batch is None else encoding.id_of(batch),
            state=state,
            event=event,
        )

    def get(self, delivery: str | Identified) -> Delivery:
        """A delivery with its attempts."""
        return self._get(Delivery, self._at(delivery))

    def redeliver(self, delivery: str | Identified) -> Delivery:
        """Resend it at once, whatever its state, with the same `webhook-id`."""
        return self._post(Delivery, self._at(delivery, "redeliver"))


class TenantSecrets(Resource):
    """`client.webhooks.secret`: signs deliveries to a URL that came with a job or batch."""

    _path = "/v1/webhook-secret"

    def get(self) -> TenantSecret:
        """The secret. Needs a scope that can write, since whoever has it can sign."""
        return self._get(TenantSecret, self._path)

    def rotate(self) -> TenantSecret:
        """Make a new one; for 24 hours requests are signed with both."""
        return self._post(TenantSecret, f"{self._path}/rotate")


class Webhooks:
    """`client.webhooks`. Receivers verify requests with `darkroom.webhooks.verify`."""

    def __init__(self, transport: Transport) -> None:
        self.endpoints = Endpoints(transport)
        self.deliveries = Deliveries(transport)
        self.secret = TenantSecrets(transport)
