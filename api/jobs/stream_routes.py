"""HTTP of jobs' event streams."""

from collections.abc import AsyncIterator
from typing import Annotated

from fastapi import APIRouter, Depends, Header, Query, Request, Response, Security
from fastapi.security import APIKeyQuery
from fastapi.sse import EventSourceResponse

from api.auth import JobsRead, authenticate, bearer, require
from api.deps import Res
from api.jobs import service, stream_tickets
from api.jobs.routes import JobId
from api.jobs.schemas import StreamTicket
from api.jobs.stream_tickets import Follower
from api.jobs.streaming import LIFE_SECONDS, open_stream
from api.problems import Problem, responses
from api.streams import while_key_lives
from api.wire import json_answer

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
    return json_answer(await stream_tickets.issue(resources, principal, job_id))


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
        found = await stream_tickets.redeem(resources, request, ticket, job_id)
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
