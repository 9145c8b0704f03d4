"""HTTP of jobs' event streams, and the tickets that let a browser open one.

`EventSource` sends no Authorization header, and a key has no place in a URL. A ticket has: it is
good for the events of one job and for minutes, and it ends with the key that asked for it. It is
`drt_<key id>_<end>_<mac>`, the end in seconds since 1970 and the mac HMAC-SHA256 over the job and
the end (RFC 2104), in base64url. It is signed with the hash of the API key that the ledger keeps,
so that nothing has to be stored for it: every process can check it, also while Redis is away.
"""

import hmac
import re
from base64 import urlsafe_b64encode
from collections.abc import AsyncIterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Annotated
from uuid import UUID

from fastapi import APIRouter, Depends, Header, Query, Request, Response, Security
from fastapi.security import APIKeyQuery
from fastapi.sse import EventSourceResponse

from api.context import Res, Resources, parse_id
from api.core.auth import (
    JobsRead,
    authenticate,
    bearer,
    find_live_key,
    prove,
    require,
    unauthenticated,
)
from api.core.errors import Problem, not_found, responses
from api.core.principal import Principal
from api.core.serialization import json_answer
from api.core.streams import while_key_lives
from api.jobs import service
from api.jobs.routes import JobId
from api.jobs.schemas import StreamTicket
from api.jobs.streaming import LIFE_SECONDS, open_stream
from shared.core.ids import to_wire
from shared.core.tenants import ApiKey
from shared.jobs.queries import lookups

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
        found = await session.scalars(lookups.get_job(principal.tenant_id, row_id))
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


router = APIRouter(prefix="/v1/jobs", tags=["jobs"])


_ticket = APIKeyQuery(
    name="ticket",
    auto_error=False,
    scheme_name="StreamTicket",
    description="From POST /v1/jobs/{id}/stream-ticket, for clients that can send no header.",
)


@router.post(
    "/{job_id}/stream-ticket",
    operation_id="jobs.stream_ticket",
    summary="Get a link to a job's events",
    response_class=Response,
    responses={
        200: {"model": StreamTicket},
        **responses("insufficient_scope", "not_found", "database_unavailable"),
    },
)
async def ticket(resources: Res, principal: JobsRead, job_id: JobId) -> Response:
    """For a browser's `EventSource`, which can send no key: a URL that needs none.

    It is good for this job's events, for 15 minutes, and no longer than the key that asked.
    """
    return json_answer(await issue(resources, principal, job_id))


async def admit_follower(
    *,
    request: Request,
    resources: Res,
    job_id: JobId,
    ticket: Annotated[str | None, Security(_ticket)],
    _: Annotated[object, Security(bearer)],
) -> AsyncIterator[Follower]:
    """By key or by ticket; holds one of the key's streams for as long as the answer lasts."""
    if ticket is None or "authorization" in request.headers:
        principal = await require("jobs:read")(await authenticate(request, resources))
        found = Follower(principal, LIFE_SECONDS)
    else:
        found = await redeem(resources, request, ticket, job_id)
    with resources.streams.hold(found.principal.key_id, request.scope):
        yield found


@router.get(
    "/{job_id}/events",
    operation_id="jobs.events",
    summary="Follow a job's events",
    response_class=Response,
    responses={
        200: {
            "description": (
                "Server-sent events: `job` (the whole job: first, at each transition, and last), "
                "`progress`, `preview`, `image`. The stream ends with the job."
            ),
            "content": {"text/event-stream": {"schema": {"type": "string"}}},
        },
        204: {"description": "You have seen the end of the job. `EventSource` then stays closed."},
        **responses("insufficient_scope", "not_found", "too_many_streams", "database_unavailable"),
    },
)
async def events(
    *,
    resources: Res,
    follower: Annotated[Follower, Depends(admit_follower)],
    job_id: JobId,
    last_event_id: Annotated[
        str | None, Header(description="Resume after this event; browsers send it by themselves.")
    ] = None,
    resume_after: Annotated[
        str | None,
        Query(alias="last_event_id", description="The same, for clients without headers."),
    ] = None,
    previews: Annotated[
        bool | None,
        Query(
            description="true: ask for previews of a job not yet running, which needs the scope "
            "`jobs`; false: leave them out."
        ),
    ] = None,
) -> Response:
    """A snapshot first, then what happens. An id that cannot be resumed from gets a snapshot."""
    principal = follower.principal
    if previews:
        if not principal.may("jobs:write"):
            raise Problem("insufficient_scope", "Asking for previews needs the scope jobs.")
        await service.request_previews(resources, principal, job_id)
    stream = await open_stream(
        resources,
        principal,
        job_id,
        last_event_id or resume_after,
        with_previews=previews is not False,
        seconds=follower.seconds,
    )
    if stream is None:
        return Response(status_code=204)
    headers = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
    return EventSourceResponse(while_key_lives(resources, principal, stream), headers=headers)
