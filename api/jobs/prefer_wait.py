"""`Prefer: wait=n`: hold an answer until a job ends, as Redis tells or the database shows."""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import Request

from api.context import Resources, parse_id
from api.core.auth import find_live_key, unauthenticated
from api.core.errors import Problem
from api.core.principal import Principal
from api.core.streams import opened
from api.jobs.followers import Follower, Following
from api.jobs.redis_events import START, StreamEvent, edges
from api.jobs.schemas import Job
from shared.core.ids import decode_id
from shared.core.logging import get_logger
from shared.jobs.state import TERMINAL_STATES

_log = get_logger(__name__)

_LAST_READ_SECONDS = 2.0
"""How long an answer is held beyond its time, to say how the job stands."""
_RETRY_SECONDS = 0.5
"""Before a job that has ended is read again where Postgres failed."""


async def wait_for_accepted(
    resources: Resources, principal: Principal, request: Request, job: Job, seconds: int
) -> Job:
    """Wait for a job that this request has queued. Whatever happens meanwhile, it is accepted."""
    try:
        return await wait_until_done(
            resources, principal, request, job, after=START, seconds=seconds
        )
    except Problem:
        return job  # Deleted, or its key has ended: the answer is as it was before.
    except Exception as error:
        _log.error("wait_failed", job_id=job.id, error=repr(error))
        return job


async def get_when_done(
    resources: Resources, principal: Principal, request: Request, job_id: str, seconds: int
) -> Job:
    """A job as soon as it has ended, or as it is after `seconds`.

    Raises:
        Problem: 404 for an unknown job, 503 when Postgres is unavailable at first, 401 when the
            key ends.
    """
    after = await newest_event(resources, job_id)
    job = await resources.get(Following).read_job(resources, principal, job_id)
    return await wait_until_done(resources, principal, request, job, after=after, seconds=seconds)


async def newest_event(resources: Resources, job_id: str) -> str:
    """Where to follow a job from; taken before the job is read, so that nothing lies between.

    Raises:
        Problem: 404 for a malformed id.
    """
    known = await edges(resources, parse_id("job", job_id, "job"))
    return START if known is None else known[1]


async def wait_until_done(
    resources: Resources,
    principal: Principal,
    request: Request,
    job: Job,
    *,
    after: str,
    seconds: int,
) -> Job:
    """The job as soon as it has ended, or as it is after `seconds`.

    Redis and Postgres may fail meanwhile: the wait continues, and ends with what is known.

    Args:
        job: as it was read; given back if nothing newer can be read.
        after: the event from which on its stream is followed.

    Raises:
        Problem: 404 when the job was deleted meanwhile, 401 when the key has ended.
    """
    if job.finished_at is not None or not seconds:
        return job
    deadline = time.monotonic() + seconds - opened(request)
    following = resources.get(Following)
    row_id = decode_id("job", job.id)
    with following.follow(row_id, principal.key_id, after, job.sequence) as follower:
        async with _leaving_with_client(request, follower):
            while (left := deadline - time.monotonic()) > 0:
                if not await follower.news(left):
                    break
                if follower.has_left:
                    return job
                if follower.key_has_ended:
                    raise unauthenticated()
                if _tells_of_an_end(resources, follower):
                    job = await read_followed(resources, principal, job, follower)
                    if job.finished_at is not None:
                        return job
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(_LAST_READ_SECONDS):
            job = await read_followed(resources, principal, job, follower)
    return job


async def read_followed(
    resources: Resources, principal: Principal, known: Job, follower: Follower
) -> Job:
    """The job as it is now, or as it was known where Postgres is unavailable."""
    try:
        if await find_live_key(resources, principal.key_id) is None:
            raise unauthenticated()
        job = await resources.get(Following).read_job(resources, principal, known.id)
    except Problem as problem:
        if problem.kind.status != 503:
            raise
        # The news stands: it is looked into again.
        asyncio.get_running_loop().call_later(_RETRY_SECONDS, _look_again, follower)
        return known
    follower.sequence = job.sequence
    return job


def _look_again(follower: Follower) -> None:
    follower.has_moved = follower.has_ended = True
    follower.tell()


def _tells_of_an_end(resources: Resources, follower: Follower) -> bool:
    """Whether Redis or the database says that the job has ended, or is gone."""
    moved = follower.take_move()
    events = resources.get(Following).take_events(follower)
    return (moved and follower.has_ended) or any(map(ends_job, events))


def ends_job(event: StreamEvent) -> bool:
    """Whether the event says that its job has ended."""
    return event.kind == "job" and event.decoded().get("state") in TERMINAL_STATES


@asynccontextmanager
async def _leaving_with_client(request: Request, follower: Follower) -> AsyncIterator[None]:
    """A client that has gone waits no longer: its place is another's."""

    async def watch() -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass
        follower.leave()

    task = asyncio.create_task(watch())
    try:
        yield
    finally:
        task.cancel()
