"""The rules of existing jobs: get, list, cancel, retry. See `submit` for new ones."""

from dataclasses import dataclass
from datetime import datetime
from uuid import UUID

from sqlalchemy.ext.asyncio import AsyncSession

from api.context import Resources, parse_id, require_row
from api.core.errors import Problem, not_found
from api.core.principal import Principal
from api.core.serialization import Page, PageRequest
from api.jobs.admission import Demand, admitted
from api.jobs.estimates import Estimates, serialize_eta
from api.jobs.redis_events import publish_state, read_progress
from api.jobs.schemas import Job, Progress
from api.jobs.serialize import read_details, serialize_job
from shared.batches import lifecycle
from shared.batches import queries as batch_queries
from shared.core.errors import RefusedByFilter
from shared.jobs import models
from shared.jobs.queries import client_requests, lookups
from shared.jobs.state import RETRYABLE_STATES, JobState


@dataclass(frozen=True)
class JobFilters:
    """The filters of a list of jobs."""

    states: tuple[str, ...] = ()
    session_id: str | None = None
    created_after: datetime | None = None
    created_before: datetime | None = None


async def get(resources: Resources, principal: Principal, job_id: str) -> Job:
    """A tenant's job with its images, attempts, progress and place in the queue."""
    row_id = parse_id("job", job_id, "job")
    position, paused = None, False
    async with resources.tenant_transaction(principal) as session:
        whole = lookups.get_whole_job(principal.tenant_id, row_id)
        rows = (await session.execute(whole)).all()
        if not rows:
            raise not_found("job")
        row = rows[0][0]
        # Each image comes once with each attempt; the session holds each row as one object.
        images = list(dict.fromkeys(image for _, image, _ in rows if image is not None))
        attempts = list(dict.fromkeys(one for _, _, one in rows if one is not None))
        if row.state == JobState.QUEUED:
            position = (await session.scalars(lookups.count_ahead(row))).one()
            if row.batch_id is not None:
                paused = (await session.scalars(lookups.is_paused(row.batch_id))).one()
    progress = await _progress(resources, row)
    estimate = None
    if row.finished_at is None and not paused:
        fraction = progress.fraction if progress is not None else None
        estimate = await resources.get(Estimates).of_job(row, position=position, fraction=fraction)
    return serialize_job(
        resources,
        row,
        family=(await resources.workers.families()).get(row.model),
        images=images,
        attempts=attempts,
        progress=progress,
        queue_position=position,
        eta=serialize_eta(estimate),
    )


async def list_page(
    resources: Resources, principal: Principal, filters: JobFilters, paging: PageRequest
) -> Page[Job]:
    """One page of a tenant's jobs, newest first."""
    scope = ("jobs", principal.tenant_id, filters)
    before = paging.position(*scope)
    async with resources.list_transaction(principal, paging.limit) as session:
        statement = lookups.list_jobs(
            principal.tenant_id, paging.limit + 1, before=before, **vars(filters)
        )
        rows = (await session.scalars(statement)).all()
        page = rows[: paging.limit]
        images, attempts = await read_details(session, page)
    progress = {row.id: await _progress(resources, row) for row in page}
    families = await resources.workers.families()

    def serialize_row(row: models.Job) -> Job:
        return serialize_job(
            resources,
            row,
            family=families.get(row.model),
            images=images[row.id],
            attempts=attempts[row.id],
            progress=progress[row.id],
        )

    return await paging.page(rows, serialize_row, *scope)


async def cancel(resources: Resources, principal: Principal, job_id: str) -> Job:
    """Stop a job: at once when queued, within one denoising step when running. May be repeated.

    Raises:
        Problem: 409 when the job has ended in another way.
    """
    row_id = parse_id("job", job_id, "job")
    async with resources.tenant_transaction(principal) as session:
        cancellation = client_requests.cancel(principal.tenant_id, row_id)
        changed = (await session.scalars(cancellation)).one_or_none()
        row = changed or await _find(session, principal, row_id)
    if changed is not None:
        await publish_state(resources, row)
        await resources.publisher.publish_deliveries(changed.webhook_deliveries or ())
    elif row.state not in (JobState.CANCELED, JobState.RUNNING):
        raise Problem("job_not_cancelable", f"The job has {row.state}.")
    return await get(resources, principal, job_id)


async def retry(resources: Resources, principal: Principal, job_id: str) -> Job:
    """Queue a failed, expired or canceled job again, charged to the caller's key; seeds stay.

    Raises:
        Problem: 409 when the job is queued, running or has succeeded; 403 or 429 for what the key
            may not queue.
    """
    row_id = parse_id("job", job_id, "job")
    async with resources.queueing_transaction(principal) as session:
        ended = await _find(session, principal, row_id)
        session.expunge(ended)  # or the session would answer with it in place of the changed row
        if ended.state not in RETRYABLE_STATES or ended.error_code == RefusedByFilter.code:
            raise _not_retryable(ended)
        demand = Demand.of_job(ended)
        async with admitted(resources, session, principal, demand):
            if ended.batch_id is not None:
                # Before the job, as everywhere; its batch runs again.
                await session.execute(batch_queries.lock_batch(principal.tenant_id, ended.batch_id))
                await session.execute(
                    lifecycle.reopen(principal.tenant_id, ended.batch_id, principal.key_id)
                )
            again = client_requests.retry(principal.tenant_id, row_id, principal.key_id)
            row = (await session.scalars(again)).one_or_none()
            if row is None:
                raise _not_retryable(await _find(session, principal, row_id))
    await publish_state(resources, row)
    await resources.publisher.publish(row)
    return await get(resources, principal, job_id)


def _not_retryable(job: models.Job) -> Problem:
    if job.error_code == RefusedByFilter.code:
        return Problem("job_not_retryable", "A filter refused its prompt; submit a new job.")
    return Problem("job_not_retryable", f"The job is {job.state}.")


async def request_previews(resources: Resources, principal: Principal, job_id: str) -> None:
    """Have previews made of a job that no worker has begun; any other stays as it is."""
    row_id = parse_id("job", job_id, "job")
    async with resources.tenant_transaction(principal) as session:
        await session.execute(client_requests.request_previews(principal.tenant_id, row_id))


async def _find(session: AsyncSession, principal: Principal, job_id: UUID) -> models.Job:
    return await require_row(session, lookups.get_job(principal.tenant_id, job_id), "job")


async def _progress(resources: Resources, row: models.Job) -> Progress | None:
    if row.state != JobState.RUNNING:
        return None
    known = await read_progress(resources, row.id, len(row.seeds))
    return known or Progress(step=0, steps=row.steps, fraction=0.0)
