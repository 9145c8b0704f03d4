"""The rules of jobs: accept, look at, list, cancel, retry."""

import hashlib
from collections import defaultdict
from collections.abc import Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

from sqlalchemy.ext.asyncio import AsyncSession

from api.context import Resources, parse_id
from api.core.errors import Problem, not_found
from api.core.fairness import built
from api.core.principal import Principal
from api.core.quotas import Work, admitted, upload_admitted, work_of_row
from api.core.serialization import Page, decode_cursor, encode_cursor
from api.images.service import discard_upload
from api.jobs.estimates import present_eta, work_of_plan
from api.jobs.events import announce, read_progress
from api.jobs.init_images import InitImage, resolve_init_image
from api.jobs.planning import Plan, plan_job
from api.jobs.schemas import Eta, Job, JobSubmission, Progress
from api.jobs.serialize import present_job
from api.webhooks.service import job_webhook
from shared.batches import queries as batch_queries
from shared.core import telemetry
from shared.core.broker import INTERACTIVE
from shared.core.ids import new_id
from shared.images import queries as image_queries
from shared.images.models import Image
from shared.jobs import models
from shared.jobs.calibration import Estimate
from shared.jobs.metrics import SUBMITTED
from shared.jobs.queries import accept as job_acceptance
from shared.jobs.queries import client_requests, estimates, lookups
from shared.jobs.state import RETRYABLE_STATES, JobState


@dataclass(frozen=True)
class Accepted:
    """The answer to a submission, as the bytes that a replay gets again."""

    body: str
    location: str
    row: models.Job | None = None
    """None for a replay; so is the next."""
    job: Job | None = None


@dataclass(frozen=True)
class Listing:
    """The filters of a list of jobs."""

    states: tuple[str, ...] = ()
    session_id: str | None = None
    created_after: datetime | None = None
    created_before: datetime | None = None


async def submit(
    resources: Resources, principal: Principal, asked: JobSubmission, idempotency_key: str | None
) -> Accepted:
    """Write the job to the ledger, then hand it to Redis; or replay the original answer.

    Raises:
        Problem: the request breaks a rule, the key was used for another body, or Postgres is away.
    """
    families = await resources.roster.families()
    plan = plan_job(asked, resources.catalog, resources.settings, families)
    fingerprint = _fingerprint("POST /v1/jobs", asked)
    if idempotency_key is not None and asked.init_image is not None:
        # Asked before the picture is decoded and stored, which a replay should not repeat.
        async with resources.tenant_transaction(principal) as session:
            replay = await _find_answer(session, principal, idempotency_key, fingerprint)
        if replay is not None:
            return replay
    init_image = await resolve_init_image(resources, principal, asked.init_image)
    if init_image is not None:
        plan = plan.starting_from(init_image.size)
    warnings = await plan_warnings(resources, plan)
    work = work_of_plan(plan)
    estimate = await resources.estimates.of_new(work)
    columns = _columns(
        resources=resources,
        principal=principal,
        asked=asked,
        plan=plan,
        init_image=init_image,
        warnings=warnings,
    )
    columns["estimate"] = estimate.as_json() if estimate is not None else None
    columns["estimated_gpu_seconds"] = (await resources.estimates.prices()).gpu_seconds(work)
    upload = init_image.new_upload if init_image is not None else None
    try:
        accepted = await _accept(
            resources, principal, columns, upload, estimate, key=idempotency_key, print_=fingerprint
        )
    except Problem as problem:
        # Whether a commit went through that got no answer, nobody knows.
        if upload is not None and problem.kind.code != "database_unavailable":
            await discard_upload(resources, upload)
        raise
    row = accepted.row
    if row is None:
        if upload is not None:
            await discard_upload(resources, upload)
        return accepted
    resources.estimates.accepted(work)
    await resources.publisher.publish(row)
    SUBMITTED.labels(row.model, row.lane).inc()
    return accepted


async def _accept(
    resources: Resources,
    principal: Principal,
    columns: dict[str, Any],
    upload: dict[str, Any] | None,
    estimate: Estimate | None,
    *,
    key: str | None,
    print_: bytes,
) -> Accepted:
    """The transaction of a submission. `key` is for idempotency, `print_` the fingerprint."""
    async with resources.queueing_transaction(principal) as session:
        if key is not None:
            taken = job_acceptance.reserve_idempotency_key(principal.tenant_id, key, print_)
            if (await session.execute(taken)).one_or_none() is None:
                replay = await _find_answer(session, principal, key, print_)
                if replay is not None:
                    return replay
        async with AsyncExitStack() as admission:
            if upload is not None:
                await admission.enter_async_context(upload_admitted(session, principal))
                await session.execute(image_queries.insert_upload(upload))
            await admission.enter_async_context(
                admitted(resources, session, principal, work_of_row(columns))
            )
            row, position = await insert_job(session, columns)
            shown = present(resources, row, queue_position=position, eta=present_eta(estimate))
            accepted = Accepted(shown.model_dump_json(), shown.links.self, row, shown)
            if key is not None:
                kept = {"body": accepted.body, "location": accepted.location}
                await session.execute(
                    job_acceptance.store_idempotent_answer(principal.tenant_id, key, 202, kept)
                )
    return accepted


async def insert_job(session: AsyncSession, columns: dict[str, Any]) -> tuple[models.Job, int]:
    """Accept one job that was admitted; the row and how many go before it."""
    context = telemetry.traceparent()
    if context is not None:
        columns = columns | {"traceparent": context}
    with telemetry.span("accept job", "client", attributes={"db.system.name": "postgresql"}):
        statement, parameters = job_acceptance.accept_job(columns)
        row, position = (await session.execute(statement, parameters)).one()
    return row, position


async def get(resources: Resources, principal: Principal, job_id: str) -> Job:
    """A tenant's job with its images, attempts, progress and place in the queue."""
    row_id = parse_id("job", job_id, "job")
    position, paused = None, False
    async with resources.tenant_transaction(principal) as session:
        whole = lookups.get_whole_job(principal.tenant_id, row_id)
        found = (await session.execute(whole)).all()
        if not found:
            raise not_found("job")
        row = found[0][0]
        # Each image comes once with each attempt; the session holds each row as one object.
        images = list(dict.fromkeys(image for _, image, _ in found if image is not None))
        attempts = list(dict.fromkeys(one for _, _, one in found if one is not None))
        if row.state == JobState.QUEUED:
            position = (await session.scalars(lookups.count_ahead(row))).one()
            if row.batch_id is not None:
                paused = (await session.scalars(estimates.is_paused(row.batch_id))).one()
    progress = await _progress(resources, row)
    estimate = None
    if row.finished_at is None and not paused:
        fraction = progress.fraction if progress is not None else None
        estimate = await resources.estimates.of_job(row, position=position, fraction=fraction)
    return present(
        resources,
        row,
        images=images,
        attempts=attempts,
        progress=progress,
        queue_position=position,
        eta=present_eta(estimate),
    )


async def list_page(
    resources: Resources, principal: Principal, listing: Listing, limit: int, after: str | None
) -> Page[Job]:
    """One page of a tenant's jobs, newest first."""
    scope = ("jobs", principal.tenant_id, listing)
    before = decode_cursor(after, *scope) if after is not None else None
    async with (
        resources.listing(principal, limit),
        resources.tenant_transaction(principal) as session,
    ):
        found = (
            await session.scalars(
                lookups.list_jobs(
                    principal.tenant_id,
                    limit + 1,
                    before=before,
                    states=listing.states,
                    session_id=listing.session_id,
                    created_after=listing.created_after,
                    created_before=listing.created_before,
                )
            )
        ).all()
        page = found[:limit]
        ids = [row.id for row in page]
        images: dict[UUID, list[Image]] = defaultdict(list)
        for image in (await session.scalars(image_queries.list_images_of_jobs(ids))).all():
            images[image.job_id].append(image)
        attempts: dict[UUID, list[models.JobAttempt]] = defaultdict(list)
        for attempt in (await session.scalars(lookups.list_attempts(ids))).all():
            attempts[attempt.job_id].append(attempt)
    has_more = len(found) > limit
    progress = {row.id: await _progress(resources, row) for row in page}

    def present_row(row: models.Job) -> Job:
        return present(
            resources,
            row,
            images=images[row.id],
            attempts=attempts[row.id],
            progress=progress[row.id],
        )

    return Page(
        data=await built(present_row, page),
        has_more=has_more,
        next_cursor=encode_cursor(page[-1].id, *scope) if has_more else None,
    )


async def cancel(resources: Resources, principal: Principal, job_id: str) -> Job:
    """Stop a job: at once when queued, within one denoising step when running. May be repeated.

    Raises:
        Problem: 409 when the job has ended in another way.
    """
    row_id = parse_id("job", job_id, "job")
    async with resources.tenant_transaction(principal) as session:
        changed = (
            await session.scalars(client_requests.cancel(principal.tenant_id, row_id))
        ).one_or_none()
        row = changed or await _find(session, principal, row_id)
    if changed is not None:
        await announce(resources.redis, resources.circuit, row)
        await resources.publisher.publish_deliveries(changed.webhook_deliveries or ())
    elif row.state not in (JobState.CANCELED, JobState.RUNNING):
        raise Problem("job_not_cancelable", f"The job has {row.state}.")
    return await get(resources, principal, job_id)


async def retry(resources: Resources, principal: Principal, job_id: str) -> Job:
    """Put a failed, expired or canceled job back in the queue, at the expense of who asks; its
    seeds stay.

    Raises:
        Problem: 409 when the job is queued, running or has succeeded; 403 or 429 for what the key
            may not queue.
    """
    row_id = parse_id("job", job_id, "job")
    async with resources.queueing_transaction(principal) as session:
        ended = await _find(session, principal, row_id)
        session.expunge(ended)  # or the session would answer with it in place of the changed row
        if ended.state not in RETRYABLE_STATES:
            raise _not_retryable(ended)
        async with admitted(resources, session, principal, _work_again(ended)):
            if ended.batch_id is not None:
                # Before the job, as everywhere; its batch runs again.
                await session.execute(batch_queries.lock_batch(principal.tenant_id, ended.batch_id))
                await session.execute(
                    batch_queries.reopen(principal.tenant_id, ended.batch_id, principal.key_id)
                )
            again = client_requests.retry(principal.tenant_id, row_id, principal.key_id)
            row = (await session.scalars(again)).one_or_none()
            if row is None:
                raise _not_retryable(await _find(session, principal, row_id))
    await announce(resources.redis, resources.circuit, row)
    await resources.publisher.publish(row)
    return await get(resources, principal, job_id)


def _not_retryable(job: models.Job) -> Problem:
    return Problem("job_not_retryable", f"The job is {job.state}.")


def _work_again(job: models.Job) -> Work:
    return Work(job.cost, frozenset({job.model}), job.width * job.height, job.estimated_gpu_seconds)


async def request_previews(resources: Resources, principal: Principal, job_id: str) -> None:
    """Have previews made of a job that no worker has begun; any other stays as it is."""
    row_id = parse_id("job", job_id, "job")
    async with resources.tenant_transaction(principal) as session:
        await session.execute(client_requests.request_previews(principal.tenant_id, row_id))


async def _find(session: AsyncSession, principal: Principal, job_id: UUID) -> models.Job:
    row = (await session.scalars(lookups.get_job(principal.tenant_id, job_id))).one_or_none()
    if row is None:
        raise not_found("job")
    return row


async def _find_answer(
    session: AsyncSession, principal: Principal, key: str, fingerprint: bytes
) -> Accepted | None:
    statement = job_acceptance.find_idempotent_answer(principal.tenant_id, key)
    known = (await session.scalars(statement)).one_or_none()
    if known is None:
        return None
    if known.request_sha256 != fingerprint:
        raise Problem("idempotency_key_reuse", "Another request was made with this key.")
    return Accepted(known.response["body"], known.response["location"])


def _fingerprint(operation: str, asked: JobSubmission) -> bytes:
    """What makes two requests the same: their meaning, not the order or spacing of their JSON."""
    body = asked.model_dump_json(exclude_unset=True, exclude={"metadata"})
    metadata = repr(sorted(asked.metadata.items()))
    return hashlib.sha256("\n".join((operation, body, metadata)).encode()).digest()


async def plan_warnings(resources: Resources, plan: Plan) -> list[dict[str, str]]:
    """What the client should know, although the job is accepted."""
    if await resources.roster.serves(plan.model) is not False:
        return []
    message = "No live worker serves this model; the job waits until one does."
    return [{"code": "model_not_served", "message": message}]


def _columns(
    *,
    resources: Resources,
    principal: Principal,
    asked: JobSubmission,
    plan: Plan,
    init_image: InitImage | None,
    warnings: list[dict[str, str]],
) -> dict[str, Any]:
    return {
        **plan.columns(),
        "id": new_id(),
        "tenant_id": principal.tenant_id,
        "api_key_id": principal.key_id,
        "lane": INTERACTIVE,
        "init_image": init_image.column() if init_image else None,
        "warnings": warnings,
        "max_attempts": resources.settings.max_attempts,
        "webhook": job_webhook(asked.webhook, resources.settings),
        "start_within": _interval(asked.start_within),
        "finish_within": _interval(asked.finish_within),
    }


def _interval(seconds: float | None) -> timedelta | None:
    """Until a deadline, which the database counts by its own clock."""
    return None if seconds is None else timedelta(seconds=seconds)


async def _progress(resources: Resources, row: models.Job) -> Progress | None:
    if row.state != JobState.RUNNING:
        return None
    known = await read_progress(resources.redis, resources.circuit, row.id, len(row.seeds))
    return known or Progress(step=0, steps=row.steps, fraction=0.0)


def present(
    resources: Resources,
    row: models.Job,
    *,
    images: Sequence[Image] = (),
    attempts: Sequence[models.JobAttempt] = (),
    progress: Progress | None = None,
    queue_position: int | None = None,
    eta: Eta | None = None,
) -> Job:
    """The wire form of a row and of what is known beside it."""
    return present_job(
        row,
        public_url=resources.settings.public_url,
        storage=resources.storage,
        images=images,
        attempts=attempts,
        progress=progress,
        queue_position=queue_position,
        eta=eta,
    )
