"""Tickets: a link to one thing that needs no key, for some minutes.

A browser's `EventSource` and an `<img>` send no Authorization header, and a key has no place in a
URL. A ticket has: it is good for one thing and for minutes, and it ends with the key that asked for
it. It is `drt_<key id>_<end>_<mac>`, the end in seconds since 1970 and the mac HMAC-SHA256 over the
kind, the thing and the end (RFC 2104), in base64url. It is signed with the hash of the API key that
the database keeps, so that nothing has to be stored for it: every process can check it, also while
Redis is unavailable.
"""

import hmac
import re
from base64 import urlsafe_b64encode
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from uuid import UUID

from fastapi import Request

from api.context import Resources
from api.core.auth import find_live_key, prove, unauthenticated
from api.core.errors import Problem
from api.core.principal import Principal
from shared.core.tenants import ApiKey

_SKEW = timedelta(minutes=1)
"""By how much the clock of the process that gave a ticket may be ahead."""
_TICKET = re.compile(r"drt_([0-9A-Za-z]{12})_([0-9]{10,12})_([0-9A-Za-z_-]{43})")


@dataclass(frozen=True)
class Tickets:
    """One kind of ticket."""

    kind: str
    life: timedelta
    scopes: tuple[str, ...]
    """The key must still have one of them."""
    refusal: str

    async def issue(
        self, resources: Resources, principal: Principal, thing: UUID
    ) -> tuple[str, datetime]:
        """A ticket and its end. The caller has checked that the thing is the tenant's.

        Raises:
            Problem: 401 when the key has ended meanwhile.
        """
        key = await find_live_key(resources, principal.key_id)
        if key is None:
            raise unauthenticated()
        end = (datetime.now(UTC) + self.life).replace(microsecond=0)
        if key.expires_at is not None:
            end = min(end, key.expires_at.replace(microsecond=0))
        mac = self.mac(key.secret_hash, thing, seconds_of(end))
        return f"drt_{key.id}_{seconds_of(end)}_{mac}", end

    async def redeem(
        self, resources: Resources, request: Request, ticket: str, thing: UUID
    ) -> tuple[Principal, float]:
        """The principal that the ticket was given to, if it is good for this thing now, and the
        seconds that it has left.

        Raises:
            Problem: 401 for any other; 403 if its key has lost the scopes.
        """
        match = _TICKET.fullmatch(ticket)
        if match is None:
            raise unauthenticated(self.refusal)
        key_id, end, offered = match[1], int(match[2]), match[3]
        now = datetime.now(UTC)
        # A key's holder could sign any end; no ticket outlives one that we would give.
        if not seconds_of(now) < end <= seconds_of(now + self.life + _SKEW):
            raise unauthenticated(self.refusal)

        def proof(key: ApiKey | None) -> bool:
            signed = self.mac(key.secret_hash if key else bytes(32), thing, end)
            return hmac.compare_digest(signed, offered) and key is not None

        try:
            principal = await prove(resources, request, key_id, proof)
        except Problem as problem:
            if problem.kind.status == 401:
                raise unauthenticated(self.refusal) from None
            raise
        if not any(map(principal.may, self.scopes)):
            raise Problem("insufficient_scope", f"This needs the scope {self.scopes[0]}.")
        return principal, end - now.timestamp()

    def mac(self, secret_hash: bytes, thing: UUID, end: int) -> str:
        """The signature of the key's holder."""
        message = f"darkroom {self.kind} ticket\n{thing}\n{end}".encode("ascii")
        return urlsafe_b64encode(hmac.digest(secret_hash, message, "sha256")).rstrip(b"=").decode()


def seconds_of(moment: datetime) -> int:
    """Since 1970."""
    return int(moment.timestamp())
