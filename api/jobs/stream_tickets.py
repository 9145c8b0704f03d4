"""Stream tickets: short-lived links to one job's events, for a browser's `EventSource`.

`EventSource` sends no Authorization header, and a key has no place in a URL. A ticket has: it is
good for the events of one job and for minutes, and it ends with the key that asked for it. It is
`drt_<key id>_<end>_<mac>`, the end in seconds since 1970 and the mac HMAC-SHA256 over the job and
the end (RFC 2104), in base64url. It is signed with the hash of the API key that the ledger keeps,
so that nothing has to be stored for it: every process can check it, also while Redis is away.
"""

import hmac
import re
from base64 import urlsafe_b64encode
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from uuid import UUID

from fastapi import Request

from api.auth import find_live_key, prove, unauthenticated
from api.deps import Resources, parse_id
from api.jobs.schemas import StreamTicket
from api.principal import Principal
from api.problems import Problem, not_found
from shared.ids import to_wire
from shared.jobs import statements
from shared.tenancy.models import ApiKey

TICKET_LIFE = timedelta(minutes=15)
"""As long as a stream lives; one that ends sooner can be taken up again with the same ticket."""
_SKEW = timedelta(minutes=1)
"""By how much the clock of the process that gave a ticket may be ahead."""
_TICKET = re.compile(r"drt_([0-9A-Za-z]{12})_([0-9]{10,12})_([0-9A-Za-z_-]{43})")
_REFUSED = "The stream ticket is malformed, has ended, or is not for this job."


@dataclass(frozen=True)
class Follower:
    """Who follows a stream, and for how many seconds at most."""

    principal: Principal
    seconds: float


async def issue(resources: Resources, principal: Principal, job_id: str) -> StreamTicket:
    """A link to the events of one of the tenant's jobs.

    Raises:
        Problem: 404 for an unknown job, 503 when Postgres is away.
    """
    row_id = parse_id("job", job_id, "job")
    async with resources.tenant_transaction(principal) as session:
        found = await session.scalars(statements.get_job(principal.tenant_id, row_id))
        if found.one_or_none() is None:
            raise not_found("job")
    key = await find_live_key(resources, principal.key_id)
    if key is None:
        raise unauthenticated()
    end = (datetime.now(UTC) + TICKET_LIFE).replace(microsecond=0)
    if key.expires_at is not None:
        end = min(end, key.expires_at.replace(microsecond=0))
    ticket = f"drt_{key.id}_{_seconds(end)}_{_mac(key.secret_hash, row_id, _seconds(end))}"
    path = f"/v1/jobs/{to_wire('job', row_id)}/events?ticket={ticket}"
    return StreamTicket(url=resources.settings.public_url.rstrip("/") + path, expires_at=end)


async def redeem(resources: Resources, request: Request, ticket: str, job_id: str) -> Follower:
    """Who the ticket was given to, if it is good for this job and now.

    Raises:
        Problem: 401 for any other; 403 if its key may not read jobs any more.
    """
    row_id = parse_id("job", job_id, "job")
    match = _TICKET.fullmatch(ticket)
    if match is None:
        raise unauthenticated(_REFUSED)
    key_id, end, offered = match[1], int(match[2]), match[3]
    now = datetime.now(UTC)
    # Whoever holds the key could sign any end; no ticket is worth more than one we would give.
    if not _seconds(now) < end <= _seconds(now + TICKET_LIFE + _SKEW):
        raise unauthenticated(_REFUSED)

    def proof(key: ApiKey | None) -> bool:
        signed = _mac(key.secret_hash if key else bytes(32), row_id, end)
        return hmac.compare_digest(signed, offered) and key is not None

    try:
        principal = await prove(resources, request, key_id, proof)
    except Problem as problem:
        raise (unauthenticated(_REFUSED) if problem.kind.status == 401 else problem) from None
    if not principal.may("jobs:read"):
        raise Problem("insufficient_scope", "This needs the scope jobs:read.")
    return Follower(principal, end - now.timestamp())


def _seconds(moment: datetime) -> int:
    return int(moment.timestamp())


def _mac(secret_hash: bytes, job_id: UUID, end: int) -> str:
    message = f"darkroom stream ticket\n{job_id}\n{end}".encode("ascii")
    return urlsafe_b64encode(hmac.digest(secret_hash, message, "sha256")).rstrip(b"=").decode()
