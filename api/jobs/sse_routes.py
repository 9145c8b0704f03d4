"""HTTP of jobs' event streams, and the tickets that let a browser open one."""

from collections.abc import AsyncIterator
from dataclasses import dataclass
from datetime import timedelta
from typing import Annotated

from fastapi import APIRouter, Depends, Header, Query, Request, Response, Security
from fastapi.security import APIKeyQuery
from fastapi.sse import EventSourceResponse

from api.context import Res, Resources, parse_id, require_row
from api.core.auth import JobsRead, authenticate, bearer, require
from api.core.errors import Problem, problems, problems_of
from api.core.principal import Principal
from api.core.streams import while_key_lives
from api.core.tickets import Tickets
from api.jobs import service
from api.jobs.routes import JobId
from api.jobs.schemas import StreamTicket
from api.jobs.sse import LIFE_SECONDS, open_stream
from shared.core.ids import encode_id
from shared.jobs.queries import lookups

TICKETS = Tickets(
    "stream",
    timedelta(minutes=15),
    ("jobs:read",),
    "The stream ticket is malformed, has ended, or is not for this job.",
)
"""Their life is a stream's; one that ends sooner can be taken up again with the same ticket."""


@dataclass(frozen=True)
class StreamReader:
    """The principal that reads a stream, and for how many seconds at most."""

    principal: Principal
    seconds: float


async def issue(resources: Resources, principal: Principal, job_id: str) -> StreamTicket:
    """A link to the events of one of the tenant's jobs.

    Raises:
        Problem: 404 for an unknown job, 503 when Postgres is unavailable.
    """
    row_id = parse_id("job", job_id, "job")
    async with resources.tenant_transaction(principal) as session:
        await require_row(session, lookups.get_job(principal.tenant_id, row_id), "job")
    ticket, end = await TICKETS.issue(resources, principal, row_id)
    path = f"/v1/jobs/{encode_id('job', row_id)}/events?ticket={ticket}"
    return StreamTicket(url=resources.settings.public_url + path, expires_at=end)


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
)
async def ticket(resources: Res, principal: JobsRead, job_id: JobId) -> StreamTicket:
    """For a browser's `EventSource`, which can send no key: a URL that needs none.

    It is good for this job's events, for 15 minutes, and no longer than the key that asked.
    """
    return await issue(resources, principal, job_id)


@problems(*problems_of(authenticate), "insufficient_scope", "too_many_streams")
async def admit_follower(
    *,
    request: Request,
    resources: Res,
    job_id: JobId,
    ticket: Annotated[str | None, Security(_ticket)],
    _: Annotated[object, Security(bearer)],
) -> AsyncIterator[StreamReader]:
    """By key or by ticket; holds one of the key's streams for as long as the answer lasts."""
    if ticket is None or "authorization" in request.headers:
        principal = await require("jobs:read")(await authenticate(request, resources))
        follower = StreamReader(principal, LIFE_SECONDS)
    else:
        row_id = parse_id("job", job_id, "job")
        follower = StreamReader(*await TICKETS.redeem(resources, request, ticket, row_id))
    with resources.streams.hold(follower.principal.key_id, request.scope):
        yield follower


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
    },
)
async def events(
    *,
    resources: Res,
    follower: Annotated[StreamReader, Depends(admit_follower)],
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
