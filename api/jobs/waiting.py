"""`Prefer: wait=n`: wake when a job ends, by its event stream, else by looking at the ledger."""

import asyncio
import time
from uuid import UUID

from redis.exceptions import RedisError

from api.deps import Resources
from api.events import START, follow
from api.jobs import service
from api.jobs.schemas import Job
from api.principal import Principal
from shared.ids import to_wire
from shared.jobs import statements
from shared.jobs.state import TERMINAL_STATES

_LOOK_EVERY = 1.0
"""Seconds between looks at the ledger, which sees what a lost Redis cannot tell."""


async def wait_until_done(
    resources: Resources, principal: Principal, job_id: UUID, seconds: float
) -> Job:
    """The job as soon as it has ended, or as it is after `seconds`.

    Raises:
        Problem: 404 when it was deleted meanwhile, 503 when Postgres is away.
    """
    deadline = time.monotonic() + seconds
    wire_id = to_wire("job", job_id)
    woken = asyncio.create_task(_terminal_event(resources, job_id))
    try:
        while (left := deadline - time.monotonic()) > 0:
            await asyncio.wait({woken}, timeout=min(left, _LOOK_EVERY))
            if woken.done() or await _has_ended(resources, principal, job_id):
                job = await service.get(resources, principal, wire_id)
                if job.finished_at is not None:
                    return job
            if woken.done():  # Redis is away, or told of an end that a retry has undone.
                await asyncio.sleep(min(max(deadline - time.monotonic(), 0), _LOOK_EVERY))
        return await service.get(resources, principal, wire_id)
    finally:
        woken.cancel()


async def _terminal_event(resources: Resources, job_id: UUID) -> None:
    """Return at the first event that says the job has ended, or when Redis is away."""
    try:
        async for event in follow(resources.blocking_redis, job_id, START, _LOOK_EVERY):
            if event and event.kind == "job" and event.decoded().get("state") in TERMINAL_STATES:
                return
    except (RedisError, OSError):
        return


async def _has_ended(resources: Resources, principal: Principal, job_id: UUID) -> bool:
    """One statement: many may wait, and nothing has happened to most of their jobs."""
    async with resources.tenant_transaction(principal) as session:
        job = (await session.scalars(statements.get_job(principal.tenant_id, job_id))).one_or_none()
    return job is None or job.state in TERMINAL_STATES
