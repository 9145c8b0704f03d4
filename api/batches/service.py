"""The rules of batches: make, estimate, look at, list, steer."""

import asyncio
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from uuid import UUID

from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.sql.dml import ReturningUpdate

from api.batches.ingest import Accepted, Submission, accept, find_answer, keep_refusal
from api.batches.lines import LineChecker
from api.batches.reading import Line
from api.batches.schemas import Batch, BatchItem, DryRun, Estimate, Finding, RetryResult
from api.batches.serialize import Standing, present_batch, present_item
from api.batches.validation import Validated, validate
from api.context import Resources, parse_id
from api.core.errors import Problem, not_found
from api.core.fairness import built
from api.core.principal import Principal
from api.core.quotas import Work, admitted
from api.core.serialization import Page, decode_cursor, encode_cursor
from api.jobs.estimates import present_eta
from api.jobs.events import announce
from shared.batches import models as rows
from shared.batches import queries
from shared.images import queries as image_queries
from shared.images.models import Image
from shared.jobs.models import Job, JobAttempt
from shared.jobs.queries import client_requests, lookups
from shared.webhooks.events import JOB_EVENTS

_SECONDS_FOR_ALL_JOBS = 60.0
"""For a transaction that changes every job of a batch."""
_AT_ONCE = 2
"""Files that one process validates at the same time; the others wait their turn."""
_turns = asyncio.Semaphore(_AT_ONCE)


@dataclass(frozen=True)
class Items:
    """The filters of a batch's items."""

    states: tuple[str, ...] = ()
    custom_id: str | None = None


async def submit(
    resources: Resources, principal: Principal, submission: Submission, lines: Iterator[Line]
) -> Accepted:
    """Validate all lines, then accept the batch whole, or replay the original answer.

    Raises:
        Problem: 422 `batch_rejected` with the first errors; all are kept as the report of a
            failed batch, to which the `Location` of the answer leads.
    """
    if submission.idempotency_key is not None:
        # Asked before the work of validation, which a replay should not repeat.
        async with resources.tenant_transaction(principal) as session:
            replay = await find_answer(session, principal, submission)
        if replay is not None:
            return replay
    async with _turns:
        checker = await _checker(resources, submission)
        found = await validate(resources, principal, lines, checker)
        try:
            if found.makes_a_batch(submission.options.on_error):
                return await accept(resources, principal, submission, found)
            return await _reject(resources, principal, submission, found)
        finally:
            found.close()


async def _reject(
    resources: Resources, principal: Principal, submission: Submission, found: Validated
) -> Accepted:
    errors = found.report.field_errors(submission.source)
    batch_id = await keep_refusal(resources, principal, submission, found)
    location = f"{resources.settings.public_url.rstrip('/')}/v1/batches/{batch_id}"
    raise Problem(
        "batch_rejected",
        f"{found.report.count} errors in {found.lines} lines; nothing was accepted. "
        f"GET {location}/errors lists them all.",
        errors=errors,
        headers={"Location": location},
    )


async def estimate(
    resources: Resources, principal: Principal, submission: Submission, lines: Iterator[Line]
) -> DryRun:
    """Validate all lines and say what they would make; nothing is kept."""
    async with _turns:
        checker = await _checker(resources, submission)
        found = await validate(resources, principal, lines, checker)
    found.close()
    async with resources.tenant_transaction(principal) as session:
        asked = queries.recent_speed(principal.tenant_id, sorted(found.models))
        jobs, cost, gpu_seconds = (await session.execute(asked)).one()
    seconds = float(gpu_seconds) * found.cost / float(cost) if jobs else None
    estimate = await resources.estimates.of_batch(found.models, found.cost)
    eta = present_eta(estimate)
    return DryRun(
        accepted=found.makes_a_batch(submission.options.on_error),
        lines=found.lines,
        invalid_lines=found.invalid_lines,
        jobs=found.jobs,
        images=found.images,
        cost=found.cost,
        estimate=None
        if seconds is None
        else Estimate(gpu_seconds=round(seconds, 3), jobs_of_evidence=jobs),
        eta=eta.p50 if eta is not None else None,
        error_count=found.report.count,
        errors=[
            Finding(
                line=error.line,
                custom_id=error.custom_id,
                pointer=error.pointer,
                code=error.code,
                message=error.message,
            )
            for error in found.report.first
        ],
    )


async def _checker(resources: Resources, submission: Submission) -> LineChecker:
    options = submission.options
    names = ("session_id", "start_within", "finish_within")
    given = {name: getattr(options, name) for name in names}
    base = {name: value for name, value in given.items() if value is not None}
    webhook = submission.webhook
    tells_of_jobs = webhook is not None and not set(JOB_EVENTS).isdisjoint(webhook["events"])
    return LineChecker(
        base | options.defaults,
        templates=options.templates,
        catalog=resources.catalog,
        settings=resources.settings,
        families=await resources.roster.families(),
        webhook=webhook if tells_of_jobs else None,
    )


async def get(resources: Resources, principal: Principal, batch_id: str) -> Batch:
    """A tenant's batch with counts, rate and ETA as of now."""
    row_id = parse_id("batch", batch_id, "batch")
    async with resources.tenant_transaction(principal) as session:
        batch = await find(session, principal, row_id)
        [standing] = await _standings(session, [batch])
        if batch.finished_at is None:
            jobs, cost, seconds = (await session.execute(queries.recent_progress(batch.id))).one()
            standing.recent_jobs, standing.recent_cost = jobs, int(cost)
            standing.recent_seconds = float(seconds)
    return present_batch(batch, standing, resources.settings.public_url)


async def list_page(
    resources: Resources,
    principal: Principal,
    states: tuple[str, ...],
    limit: int,
    after: str | None,
) -> Page[Batch]:
    """One page of a tenant's batches, newest first."""
    scope = ("batches", principal.tenant_id, states)
    before = decode_cursor(after, *scope) if after is not None else None
    async with resources.tenant_transaction(principal) as session:
        asked = queries.list_batches(principal.tenant_id, limit + 1, before=before, states=states)
        found = (await session.scalars(asked)).all()
        page = found[:limit]
        standings = await _standings(session, page)
    has_more = len(found) > limit
    url = resources.settings.public_url
    return Page(
        data=[present_batch(b, s, url) for b, s in zip(page, standings, strict=True)],
        has_more=has_more,
        next_cursor=encode_cursor(page[-1].id, *scope) if has_more else None,
    )


async def list_items(
    resources: Resources,
    principal: Principal,
    batch_id: str,
    items: Items,
    *,
    limit: int,
    after: str | None,
) -> Page[BatchItem]:
    """One page of a batch's jobs, in the order of its lines."""
    row_id = parse_id("batch", batch_id, "batch")
    scope = ("batch items", principal.tenant_id, row_id, items)
    behind = decode_cursor(after, *scope) if after is not None else None
    async with (
        resources.listing(principal, limit),
        resources.tenant_transaction(principal) as session,
    ):
        batch = await find(session, principal, row_id)
        asked = queries.list_items(
            batch, limit + 1, after=behind, states=items.states, custom_id=items.custom_id
        )
        found = (await session.scalars(asked)).all()
        page = found[:limit]
        ids = [job.id for job in page]
        images: dict[UUID, list[Image]] = defaultdict(list)
        for image in (await session.scalars(image_queries.list_images_of_jobs(ids))).all():
            images[image.job_id].append(image)
        attempts: dict[UUID, list[JobAttempt]] = defaultdict(list)
        for attempt in (await session.scalars(lookups.list_attempts(ids))).all():
            attempts[attempt.job_id].append(attempt)
    has_more = len(found) > limit

    def present(j: Job) -> BatchItem:
        url, storage = resources.settings.public_url, resources.storage
        return present_item(j, images[j.id], attempts[j.id], public_url=url, storage=storage)

    return Page(
        data=await built(present, page),
        has_more=has_more,
        next_cursor=encode_cursor(page[-1].id, *scope) if has_more else None,
    )


async def set_paused(
    resources: Resources, principal: Principal, batch_id: str, paused: bool
) -> Batch:
    """Hold a batch, or let it go on. Running jobs end; no other starts. May be repeated.

    Raises:
        Problem: 409 when the batch has ended.
    """
    row_id = parse_id("batch", batch_id, "batch")
    statement = queries.set_paused(principal.tenant_id, row_id, paused)
    return await _change(resources, principal, batch_id, statement)


async def set_priority(
    resources: Resources, principal: Principal, batch_id: str, priority: int
) -> Batch:
    """Let a batch go before or after others of its key.

    Raises:
        Problem: 409 when the batch has ended.
    """
    row_id = parse_id("batch", batch_id, "batch")
    statement = queries.set_priority(principal.tenant_id, row_id, priority)
    return await _change(resources, principal, batch_id, statement)


async def cancel(resources: Resources, principal: Principal, batch_id: str) -> Batch:
    """Cancel all jobs that wait at once, and those that run within a step. May be repeated.

    Raises:
        Problem: 409 when the batch has ended in another way.
    """
    row_id = parse_id("batch", batch_id, "batch")
    async with resources.tenant_transaction(principal, _SECONDS_FOR_ALL_JOBS) as session:
        batch = await find(session, principal, row_id, for_update=True)
        if batch.finished_at is not None and batch.state != "canceled":
            raise _has_ended(batch)
        await session.execute(queries.request_cancel(principal.tenant_id, row_id))
        asked = client_requests.cancel_batch(principal.tenant_id, row_id)
        running = (await session.scalars(asked)).all()
    for job in running:
        await announce(resources.redis, resources.circuit, job)
    return await get(resources, principal, batch_id)


async def retry_failed(resources: Resources, principal: Principal, batch_id: str) -> RetryResult:
    """Queue the jobs that failed or expired again, at the expense of who asks, with the same seeds
    and no deadlines.

    Raises:
        Problem: 409 when there is none; 403 or 429 for what the key may not queue.
    """
    row_id = parse_id("batch", batch_id, "batch")
    async with resources.queueing_transaction(principal, _SECONDS_FOR_ALL_JOBS) as session:
        await find(session, principal, row_id, for_update=True)
        again = (await session.execute(queries.sum_retryable(principal.tenant_id, row_id))).one()
        if not again.jobs:
            raise Problem("nothing_to_retry", "No job of the batch has failed or expired.")
        work = Work(
            int(again.cost), frozenset(again.models), again.pixels, again.gpu_seconds, again.jobs
        )
        async with admitted(resources, session, principal, work):
            key_id = principal.key_id
            await session.execute(queries.reopen(principal.tenant_id, row_id, key_id))
            await session.execute(client_requests.retry_batch(principal.tenant_id, row_id, key_id))
    return RetryResult(retried=again.jobs, batch=await get(resources, principal, batch_id))


async def find(
    session: AsyncSession, principal: Principal, batch_id: UUID, *, for_update: bool = False
) -> rows.Batch:
    """A tenant's batch.

    Raises:
        Problem: 404.
    """
    choose = queries.lock_batch if for_update else queries.get_batch
    batch = (await session.scalars(choose(principal.tenant_id, batch_id))).one_or_none()
    if batch is None:
        raise not_found("batch")
    return batch


async def _change(
    resources: Resources,
    principal: Principal,
    batch_id: str,
    statement: ReturningUpdate[rows.Batch],
) -> Batch:
    async with resources.tenant_transaction(principal) as session:
        changed = (await session.scalars(statement)).one_or_none()
        if changed is None:
            batch = await find(session, principal, parse_id("batch", batch_id, "batch"))
            if batch.finished_at is not None:
                raise _has_ended(batch)
    return await get(resources, principal, batch_id)


def _has_ended(batch: rows.Batch) -> Problem:
    return Problem("batch_has_ended", f"The batch has ended: {batch.state}.")


async def _standings(session: AsyncSession, batches: Sequence[rows.Batch]) -> list[Standing]:
    """Counts of each batch: asked of the jobs, or, of one that has ended, as kept at its end."""
    live = {batch.id: Standing() for batch in batches if batch.finished_at is None}
    if live:
        for batch_id, state, jobs, images, cost in (
            await session.execute(queries.count_jobs(list(live)))
        ).all():
            live[batch_id].add(state, jobs, images, cost)
    return [live.get(batch.id) or Standing.of_ended(batch) for batch in batches]
