"""The rules of batches: submit, estimate, get, list, change."""

from collections.abc import Sequence
from dataclasses import dataclass
from uuid import UUID

from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.sql.dml import ReturningUpdate

from api.batches.accept import accept, keep_refusal
from api.batches.columns import Columns
from api.batches.file_formats import sample
from api.batches.planning import LineChecker
from api.batches.request import BatchRequest, columns_of
from api.batches.schemas import (
    Batch,
    BatchItem,
    DryRun,
    Estimate,
    Finding,
    PlannedLine,
    RetryResult,
    TableColumn,
)
from api.batches.serialize import BatchProgress, serialize_batch
from api.batches.validation import Validated, turns, validate
from api.context import Resources, parse_id, require_row
from api.core.errors import Problem
from api.core.fairness import on_thread
from api.core.principal import Principal
from api.core.serialization import Page, PageRequest
from api.jobs.admission import Demand, admitted
from api.jobs.estimates import Estimates, serialize_eta
from api.jobs.idempotency import Answer
from api.jobs.loras import own_loras
from api.jobs.redis_events import publish_end, publish_state
from api.jobs.serialize import read_details, serialize_job
from shared.batches import lifecycle, models, queries
from shared.jobs.models import Job
from shared.jobs.queries import client_requests
from shared.webhooks.models import JOB_EVENTS

_SECONDS_FOR_ALL_JOBS = 60.0
"""For a transaction that changes every job of a batch."""


@dataclass(frozen=True)
class Items:
    """The filters of a batch's items."""

    states: tuple[str, ...] = ()
    custom_id: str | None = None


async def submit(resources: Resources, principal: Principal, request: BatchRequest) -> Answer:
    """Validate all lines, then accept the batch whole, or replay the original answer.

    Raises:
        Problem: 422 `batch_rejected` with the first errors; all are kept as the report of a
            failed batch, to which the `Location` of the answer leads.
    """
    if request.once.key is not None:
        # Asked before the work of validation, which a replay should not repeat.
        async with resources.tenant_transaction(principal) as session:
            if (replay := await request.once.find_answer(session, principal)) is not None:
                return replay
    async with turns:
        checker = await _checker(resources, principal, request)
        validated = await validate(resources, principal, request.lines, checker)
        try:
            if validated.makes_a_batch(request.options.on_error):
                return await accept(resources, principal, request, validated)
            return await _reject(resources, principal, request, validated)
        finally:
            validated.close()


async def _reject(
    resources: Resources, principal: Principal, request: BatchRequest, validated: Validated
) -> Answer:
    errors = validated.report.field_errors(request.source)
    batch_id = await keep_refusal(resources, principal, request, validated)
    location = f"{resources.settings.public_url}/v1/batches/{batch_id}"
    raise Problem(
        "batch_rejected",
        f"{validated.report.count} errors in {validated.lines} lines; nothing was accepted. "
        f"GET {location}/errors lists them all.",
        errors=errors,
        headers={"Location": location},
    )


async def estimate(resources: Resources, principal: Principal, request: BatchRequest) -> DryRun:
    """Validate all lines and say what they would make; nothing is kept."""
    async with turns:
        columns = await on_thread(_table_columns, request)
        checker = await _checker(resources, principal, request)
        validated = await validate(resources, principal, request.lines, checker)
    validated.close()
    async with resources.tenant_transaction(principal) as session:
        statement = queries.recent_speed(principal.tenant_id, sorted(validated.models))
        jobs, cost, gpu_seconds = (await session.execute(statement)).one()
    seconds = float(gpu_seconds) * validated.cost / float(cost) if jobs else None
    eta = serialize_eta(await resources.get(Estimates).of_batch(validated.models, validated.cost))
    return DryRun.of(
        validated,
        accepted=validated.makes_a_batch(request.options.on_error),
        refused_jobs=sum(each.refusal is not None for each in validated.found.values()),
        estimate=None
        if seconds is None
        else Estimate(gpu_seconds=round(seconds, 3), jobs_of_evidence=jobs),
        eta=eta.p50 if eta is not None else None,
        error_count=validated.report.count,
        errors=[Finding.of(error) for error in validated.report.first],
        columns=columns,
        first_jobs=[
            PlannedLine.of(plan, line=job.line, custom_id=job.custom_id)
            for job, plan in validated.first
        ],
    )


def _table_columns(request: BatchRequest) -> list[TableColumn]:
    if request.file is None or request.source == "json":
        return []
    mapping = columns_of(request.options) or Columns(None, {}, alternatives=False)
    return [
        TableColumn(name=name, example=example, fields=list(mapping.fields_of(name)))
        for name, example in sample(request.file, request.source).items()
    ]


async def _checker(
    resources: Resources, principal: Principal, request: BatchRequest
) -> LineChecker:
    options = request.options
    names = {"session_id", "start_within", "finish_within"}
    base = options.model_dump(include=names, exclude_none=True)
    webhook = request.webhook
    tells_of_jobs = webhook is not None and not set(JOB_EVENTS).isdisjoint(webhook["events"])
    return LineChecker(
        base | options.defaults,
        templates=options.templates,
        catalog=resources.catalog,
        settings=resources.settings,
        families=await resources.workers.families(),
        uploaded=await own_loras(resources, principal),
        webhook=webhook if tells_of_jobs else None,
    )


async def get(resources: Resources, principal: Principal, batch_id: UUID) -> Batch:
    """A tenant's batch with counts, rate and ETA as of now."""
    async with resources.tenant_transaction(principal) as session:
        batch = await find(session, principal, batch_id)
        [progress] = await _progress_of(session, [batch])
        if batch.finished_at is None:
            jobs, cost, seconds = (await session.execute(queries.recent_progress(batch.id))).one()
            progress.recent_jobs, progress.recent_cost = jobs, int(cost)
            progress.recent_seconds = float(seconds)
    return serialize_batch(batch, progress, resources.settings.public_url)


async def list_page(
    resources: Resources, principal: Principal, states: tuple[str, ...], paging: PageRequest
) -> Page[Batch]:
    """One page of a tenant's batches, newest first."""
    scope = ("batches", principal.tenant_id, states)
    before = paging.position(*scope)
    async with resources.tenant_transaction(principal) as session:
        statement = queries.list_batches(
            principal.tenant_id, paging.limit + 1, before=before, states=states
        )
        rows = (await session.scalars(statement)).all()
        page = rows[: paging.limit]
        progresses = await _progress_of(session, page)
    of_batch = dict(zip(page, progresses, strict=True))
    return await paging.page(
        rows, lambda b: serialize_batch(b, of_batch[b], resources.settings.public_url), *scope
    )


async def list_items(
    resources: Resources, principal: Principal, batch_id: str, items: Items, paging: PageRequest
) -> Page[BatchItem]:
    """One page of a batch's jobs, in the order of its lines."""
    row_id = parse_id("batch", batch_id, "batch")
    scope = ("batch items", principal.tenant_id, row_id, items)
    behind = paging.position(*scope)
    async with resources.list_transaction(principal, paging.limit) as session:
        batch = await find(session, principal, row_id)
        statement = queries.list_items(
            batch, paging.limit + 1, after=behind, states=items.states, custom_id=items.custom_id
        )
        rows = (await session.scalars(statement)).all()
        page = rows[: paging.limit]
        images, attempts = await read_details(session, page)
    families = await resources.workers.families()

    def serialize(job: Job) -> BatchItem:
        shown = serialize_job(
            resources,
            job,
            family=families.get(job.model),
            images=images[job.id],
            attempts=attempts[job.id],
        )
        return BatchItem(**dict(shown), custom_id=job.custom_id, line=job.line)

    return await paging.page(rows, serialize, *scope)


async def set_paused(
    resources: Resources, principal: Principal, batch_id: str, paused: bool
) -> Batch:
    """Pause a batch, or let it continue. Running jobs end; no other starts. May be repeated.

    Raises:
        Problem: 409 when the batch has ended.
    """
    row_id = parse_id("batch", batch_id, "batch")
    change = lifecycle.set_paused(principal.tenant_id, row_id, paused)
    return await _change(resources, principal, row_id, change)


async def set_priority(
    resources: Resources, principal: Principal, batch_id: str, priority: int
) -> Batch:
    """Let a batch go before or after others of its key.

    Raises:
        Problem: 409 when the batch has ended.
    """
    row_id = parse_id("batch", batch_id, "batch")
    change = lifecycle.set_priority(principal.tenant_id, row_id, priority)
    return await _change(resources, principal, row_id, change)


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
        await session.execute(lifecycle.request_cancel(principal.tenant_id, row_id))
        statement = client_requests.cancel_batch(principal.tenant_id, row_id)
        running = (await session.scalars(statement)).all()
    for job in running:
        await publish_state(resources, job)
    await publish_end(resources, row_id)
    return await get(resources, principal, row_id)


async def retry_failed(resources: Resources, principal: Principal, batch_id: str) -> RetryResult:
    """Queue failed and expired jobs again, charged to the caller's key, with the same seeds and no
    deadlines.

    Raises:
        Problem: 409 when there is none; 403 or 429 for what the key may not queue.
    """
    row_id = parse_id("batch", batch_id, "batch")
    async with resources.queueing_transaction(principal, _SECONDS_FOR_ALL_JOBS) as session:
        await find(session, principal, row_id, for_update=True)
        again = (await session.execute(queries.sum_retryable(principal.tenant_id, row_id))).one()
        if not again.jobs:
            raise Problem("nothing_to_retry", "No job of the batch has failed or expired.")
        demand = Demand(
            int(again.cost), frozenset(again.models), again.pixels, again.gpu_seconds, again.jobs
        )
        async with admitted(resources, session, principal, demand):
            key_id = principal.key_id
            await session.execute(lifecycle.reopen(principal.tenant_id, row_id, key_id))
            await session.execute(client_requests.retry_batch(principal.tenant_id, row_id, key_id))
    return RetryResult(retried=again.jobs, batch=await get(resources, principal, row_id))


async def find(
    session: AsyncSession, principal: Principal, batch_id: UUID, *, for_update: bool = False
) -> models.Batch:
    """A tenant's batch.

    Raises:
        Problem: 404.
    """
    choose = queries.lock_batch if for_update else queries.get_batch
    return await require_row(session, choose(principal.tenant_id, batch_id), "batch")


async def _change(
    resources: Resources,
    principal: Principal,
    batch_id: UUID,
    change: ReturningUpdate[models.Batch],
) -> Batch:
    async with resources.tenant_transaction(principal) as session:
        if (await session.scalars(change)).one_or_none() is None:
            batch = await find(session, principal, batch_id)
            if batch.finished_at is not None:
                raise _has_ended(batch)
    return await get(resources, principal, batch_id)


def _has_ended(batch: models.Batch) -> Problem:
    return Problem("batch_has_ended", f"The batch has ended: {batch.state}.")


async def _progress_of(
    session: AsyncSession, batches: Sequence[models.Batch]
) -> list[BatchProgress]:
    """Counts of each batch: asked of the jobs, or, of one that has ended, as kept at its end."""
    live = {batch.id: BatchProgress() for batch in batches if batch.finished_at is None}
    if live:
        for batch_id, state, jobs, images, cost in (
            await session.execute(queries.count_jobs(list(live)))
        ).all():
            live[batch_id].add(state, jobs, images, cost)
    return [live.get(batch.id) or BatchProgress.of_ended(batch) for batch in batches]
