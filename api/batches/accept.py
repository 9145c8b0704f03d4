"""Accept a validated file: the batch, its jobs and its report in one transaction, or nothing."""

from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Any, NamedTuple, cast
from uuid import UUID

import psycopg
from sqlalchemy import Select
from sqlalchemy.ext.asyncio import AsyncSession

from api.batches.request import BatchRequest
from api.batches.serialize import BatchProgress, serialize_batch
from api.batches.validation import Validated
from api.context import Resources
from api.core.fairness import on_thread
from api.core.principal import Principal
from api.jobs.admission import Demand, admitted
from api.jobs.idempotency import Answer
from api.jobs.prompt_filters import warnings_of
from shared.batches import models as rows
from shared.batches import queries
from shared.batches.lifecycle import snapshot
from shared.batches.state import BatchState
from shared.core import tenants
from shared.core.broker import BULK
from shared.core.ids import encode_id
from shared.jobs.metrics import SEVERAL_MODELS, SUBMITTED
from shared.jobs.queries import client_requests
from shared.jobs.state import JobState
from shared.webhooks import outbox
from shared.webhooks.models import EventType

_SECONDS = 60.0
"""For the whole transaction; 50,000 jobs take one or two."""
_BLOCK = 256 * 1024
_SESSIONS_AT_ONCE = 5000


class _Refused(NamedTuple):
    """The jobs that filters have refused."""

    jobs: int = 0
    images: int = 0
    cost: int = 0
    deliveries: Sequence[UUID] = ()


async def accept(
    resources: Resources, principal: Principal, request: BatchRequest, validated: Validated
) -> Answer:
    """Write the batch whole, or replay the original answer.

    Raises:
        Problem: 403 or 429 for what the key may not queue, 503 when the database is unavailable.
    """
    async with resources.queueing_transaction(principal, _SECONDS) as session:
        replay = await request.once.reserve(session, principal)
        if replay is not None:
            return replay
        demand = Demand(
            *(validated.cost, frozenset(validated.models), validated.largest),
            *(validated.gpu_seconds, validated.jobs),
        )
        async with admitted(resources, session, principal, demand):
            batch, refused, deliveries = await _write(session, principal, request, validated)
            progress = _progress(validated, refused)
            shown = serialize_batch(batch, progress, resources.settings.public_url)
            answer = Answer(shown.model_dump_json(), shown.links.self)
            await request.once.keep(session, principal, answer)
    model = next(iter(validated.models)) if len(validated.models) == 1 else SEVERAL_MODELS
    SUBMITTED.labels(model, BULK).inc(validated.jobs)
    await resources.publisher.publish_deliveries(deliveries)
    return answer


async def _write(
    session: AsyncSession, principal: Principal, request: BatchRequest, validated: Validated
) -> tuple[rows.Batch, _Refused, Sequence[UUID]]:
    """The batch with its jobs and its report, what filters have refused of it, and the deliveries
    that tell of all this."""
    await _ensure_sessions(session, principal.tenant_id, sorted(validated.sessions))
    # Row-level security forbids COPY; every row and statement from here on names the tenant.
    await tenants.disable_rls(session)
    columns = _columns(principal, request, validated, BatchState.VALIDATING)
    await session.execute(queries.insert_batch(columns))
    await _copy_jobs(session, validated)
    refused = await _note_findings(session, validated)
    if validated.report.count:
        await _keep_report(session, validated)
    batch = (await session.scalars(queries.finish_ingest(validated.batch_id))).one()
    events = _event(batch, EventType.BATCH_VALIDATED)
    deliveries = (await session.scalars(events)).one() or []
    return batch, refused, [*deliveries, *refused.deliveries]


async def _note_findings(session: AsyncSession, validated: Validated) -> _Refused:
    """Let the jobs fail whose prompts a filter refuses, and warn of those that one marks."""
    found = {UUID(job_id): findings for job_id, findings in validated.found.items()}
    marked = {job_id: warnings_of(each) for job_id, each in found.items() if each.marks}
    if marked:
        await session.execute(client_requests.mark_lines(validated.batch_id, marked))
    refused = {job_id: each.refusal.text for job_id, each in found.items() if each.refusal}
    if not refused:
        return _Refused()
    statement = client_requests.refuse_lines(validated.batch_id, refused)
    jobs, images, cost, deliveries = (await session.execute(statement)).one()
    return _Refused(jobs, images, cost, deliveries or ())


def _progress(validated: Validated, refused: _Refused) -> BatchProgress:
    progress = BatchProgress()
    jobs, images, cost, _ = refused
    left = validated.jobs - jobs, validated.images - images, validated.cost - cost
    progress.add(JobState.QUEUED, *left)
    progress.add(JobState.FAILED, jobs, images, cost)
    return progress


async def keep_refusal(
    resources: Resources, principal: Principal, request: BatchRequest, validated: Validated
) -> str:
    """Keep the report of a file that was refused, as a failed batch without jobs; its id."""
    validated.jobs = validated.images = validated.cost = 0
    async with resources.tenant_transaction(principal) as session:
        columns = _columns(principal, request, validated, BatchState.FAILED)
        columns |= {"summary": {}, "finished_at": queries.NOW, "started_at": queries.NOW}
        batch = (await session.scalars(queries.insert_batch(columns))).one()
        await _keep_report(session, validated)
        events = _event(batch, EventType.BATCH_FAILED)
        deliveries = (await session.scalars(events)).one() or ()
    await resources.publisher.publish_deliveries(deliveries)
    return encode_id("batch", batch.id)


async def _ensure_sessions(session: AsyncSession, tenant_id: UUID, names: Sequence[str]) -> None:
    for start in range(0, len(names), _SESSIONS_AT_ONCE):
        missing = set(names[start : start + _SESSIONS_AT_ONCE])
        while missing:
            # One that was deleted meanwhile is made again.
            await session.execute(queries.ensure_sessions(tenant_id, sorted(missing)))
            held = await session.scalars(queries.hold_sessions(tenant_id, sorted(missing)))
            missing -= set(held)


async def _copy_jobs(session: AsyncSession, validated: Validated) -> None:
    connection = await (await session.connection()).get_raw_connection()
    driver = cast("psycopg.AsyncConnection", connection.driver_connection)
    validated.rows.seek(0)
    async with driver.cursor() as cursor, cursor.copy(queries.COPY_JOBS) as copy:
        while block := await on_thread(validated.rows.read, _BLOCK):
            await copy.write(block)


async def _keep_report(session: AsyncSession, validated: Validated) -> None:
    report = validated.report
    kept = await on_thread(report.compressed)
    await session.execute(queries.insert_report(validated.batch_id, report.count, kept))


def _event(batch: rows.Batch, kind: EventType) -> Select[list[UUID] | None]:
    return outbox.emit(
        batch.tenant_id,
        kind,
        batch.id,
        snapshot(batch),
        sequence=batch.sequence,
        webhook=batch.webhook,
    )


def _columns(
    principal: Principal, request: BatchRequest, validated: Validated, state: BatchState
) -> dict[str, Any]:
    options = request.options
    return {
        "id": validated.batch_id,
        "tenant_id": principal.tenant_id,
        "api_key_id": principal.key_id,
        "name": request.name,
        "session_id": options.session_id,
        "source": request.source,
        "batch_metadata": dict(options.metadata),
        "webhook": request.webhook,
        "models": sorted(validated.models),
        "on_error": options.on_error,
        "start_deadline": _deadline(validated, options.start_within),
        "finish_deadline": _deadline(validated, options.finish_within),
        "lines": validated.lines,
        "invalid_lines": validated.invalid_lines,
        "jobs": validated.jobs,
        "images": validated.images,
        "cost": validated.cost,
        "priority": options.priority,
        "state": state,
    }


def _deadline(validated: Validated, seconds: float | None) -> datetime | None:
    return None if seconds is None else validated.now + timedelta(seconds=seconds)
