# Generated from darkroom/_async by client/make_sync.py (`make client`). Do not edit.
"""Keys, models and health."""

from collections.abc import Iterable, Mapping
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, Any

from darkroom import wire
from darkroom._sync.pages import Pages
from darkroom._sync.transport import Request, Transport
from darkroom.decoding import decode
from darkroom.types.account import Key, NewKey
from darkroom.types.service import Health, Model, ProblemType, Readiness, Root

if TYPE_CHECKING:
    from darkroom.wire import Identified

_HALF_A_SECOND = timedelta(seconds=0.5)
"""By so much a time of whole seconds is late on average."""


class Keys:
    """`client.keys`: the tenant's API keys; needs the scope `admin`."""

    def __init__(self, transport: Transport) -> None:
        self._transport = transport

    def create(
        self,
        name: str,
        *,
        scopes: Iterable[str],
        tenant: str | None = None,
        expires_at: datetime | None = None,
        quotas: Mapping[str, Any] | None = None,
    ) -> NewKey:
        """Make a key; `key` is shown this once. Scopes that you do not have you cannot give.

        Args:
            name: what it is for.
            scopes: `jobs` reads and writes, `jobs:read` reads; `admin` is all of a tenant's.
            tenant: another one than your own; needs the scope `operator`.
            expires_at: with a time zone, not after the end of your own key. None: it ends
                with your key, or never.
            quotas: limits, see `Quotas`.
        """
        body = wire.body(
            {
                "name": name,
                "scopes": list(scopes),
                "tenant": tenant,
                "expires_at": expires_at,
                "quotas": None if quotas is None else dict(quotas),
            }
        )
        return decode(NewKey, self._transport.json(Request("POST", "/v1/keys", json=body)))

    def list(self, *, page_size: int | None = None, after: str | None = None) -> Pages[Key]:
        """Keys without their secrets, those that have ended too."""
        asked = Request("GET", "/v1/keys", wire.query({"limit": page_size}))
        return Pages(self._transport, asked, Key, after)

    def revoke(self, key: "str | Identified") -> None:
        """End it for good, everywhere within five seconds."""
        self._transport.send(Request("DELETE", f"/v1/keys/{wire.segment(key)}"))


class Models:
    """`client.models`."""

    def __init__(self, transport: Transport) -> None:
        self._transport = transport

    def list(self) -> Pages[Model]:
        """Models with their defaults and limits, and the workers that run them."""
        return Pages(self._transport, Request("GET", "/v1/models"), Model)


class HealthChecks:
    """`client.health`."""

    def __init__(self, transport: Transport) -> None:
        self._transport = transport

    def live(self) -> Health:
        """Does the process answer? Asked once, without retries."""
        return decode(Health, self._transport.json(self._once("/healthz")))

    def ready(self) -> Readiness:
        """Can it serve requests? Asked once, without retries.

        Raises:
            NotReady: `errors` names the parts that do not answer.
        """
        return decode(Readiness, self._transport.json(self._once("/readyz")))

    def clock_skew(self) -> float | None:
        """Seconds by which the service's clock is ahead of this machine's.

        From the header `Date`, which has whole seconds: right to about one. None without it.
        """
        sent = datetime.now(UTC)
        answer = self._transport.send(self._once("/healthz"))
        middle = sent + (datetime.now(UTC) - sent) / 2
        try:
            told = parsedate_to_datetime(answer.headers.get("date", ""))
        except ValueError:
            return None
        return (told.astimezone(UTC) + _HALF_A_SECOND - middle).total_seconds()

    def root(self) -> Root:
        """The name and version of the service, and where to go from here."""
        return decode(Root, self._transport.json(Request("GET", "/")))

    def problem(self, code: str) -> ProblemType:
        """What a problem's code means."""
        asked = Request("GET", f"/problems/{wire.segment(code)}")
        return decode(ProblemType, self._transport.json(asked))

    def _once(self, path: str) -> Request:
        return Request("GET", path, patience=0.0)
