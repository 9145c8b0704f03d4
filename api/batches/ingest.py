"""Take in a validated file: the batch, its jobs and its report in one transaction, or nothing."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, cast
from uuid import UUID

import psycopg
from sqlalchemy import Select
from sqlalchemy.ext.asyncio import AsyncSession

from api.batches.schemas import BatchOptions
from api.batches.serialize import Standing, present_batch
from api.batches.validation import Validated
from api.context import Resources
from api.core.errors import Problem
from api.core.fairness import on_thread
from api.core.principal import Principal
from api.core.quotas import Work, admitted
from shared.batches import models as rows
from shared.batches import queries
from shared.batches.queries import snapshot
from shared.batches.state import BatchState
from shared.core import tenants
from shared.core.broker import BULK
from shared.core.ids import to_wire
from shared.jobs.metrics import SEVERAL_MODELS, SUBMITTED
from shared.jobs.queries import accept as job_acceptance
from shared.jobs.state import JobState
from shared.webhooks import outbox
from shared.webhooks.events import EventType

_SECONDS = 60.0
"""For the whole transaction; 50,000 jobs take one or two."""
_BLOCK = 256 * 1024
_SESSIONS_AT_ONCE = 5000


@dataclass(frozen=True)
class Submission:
    """A request for a batch, read and ready to be validated."""

    options: BatchOptions
    webhook: dict[str, Any] | None
    source: str
    """``json``, ``jsonl`` or ``csv``."""
    fingerprint: bytes
    """What makes two requests the same."""
    idempotency_key: str | None


@dataclass(frozen=True)
class Accepted:
    """The answer to a submission, as the bytes that a replay gets again."""

    body: str
    location: str
    is_replay: bool = False


async def find_answer(
    session: AsyncSession, principal: Principal, submission: Submission
) -> Accepted | None:
    """The answer that this idempotency key got before; None for a key that is new.

    Raises:
        Problem: 422, the key was used for another request.
    """
    if submission.idempotency_key is None:
        return None
    asked = job_acceptance.find_idempotent_answer(principal.tenant_id, submission.idempotency_key)
    known = (await session.scalars(asked)).one_or_none()
    if known is None:
        return None
    if known.request_sha256 != submission.fingerprint:
        raise Problem("idempotency_key_reuse", "Another request was made with this key.")
    return Accepted(known.response["body"], known.response["location"], is_replay=True)


async def accept(
    resources: Resources, principal: Principal, submission: Submission, found: Validated
) -> Accepted:
    """Write the batch whole, or replay the original answer.

    Raises:
        Problem: 403 or 429 for what the key may not queue, 503 when the database is away.
    """
    key = submission.idempotency_key
    async with resources.queueing_transaction(principal, _SECONDS) as session:
        if key is not None:
            taken = job_acceptance.reserve_idempotency_key(
                principal.tenant_id, key, submission.fingerprint
            )
            if (await session.execute(taken)).one_or_none() is None:
                replay = await find_answer(session, principal, submission)
                if replay is not None:
                    return replay
        work = Work(
            found.cost, frozenset(found.models), found.largest, found.gpu_seconds, found.jobs
        )
        async with admitted(resources, session, principal, work):
            batch, deliveries = await _write(session, principal, submission, found)
            standing = Standing()
            standing.add(JobState.QUEUED, found.jobs, found.images, found.cost)
            shown = present_batch(batch, standing, resources.settings.public_url)
            accepted = Accepted(shown.model_dump_json(), shown.links.self)
            if key is not None:
                kept = {"body": accepted.body, "location": accepted.location}
                await session.execute(
                    job_acceptance.store_idempotent_answer(principal.tenant_id, key, 202, kept)
                )
    model = next(iter(found.models)) if len(found.models) == 1 else SEVERAL_MODELS
    SUBMITTED.labels(model, BULK).inc(found.jobs)
    await resources.publisher.publish_deliveries(deliveries)
    return accepted


async def _write(
    session: AsyncSession, principal: Principal, submission: Submission, found: Validated
) -> tuple[rows.Batch, Sequence[UUID]]:
    """The batch with its jobs and its report; and the deliveries that tell of it."""
    await _ensure_sessions(session, principal.tenant_id, sorted(found.sessions))
    # Row-level security forbids COPY; every row and statement from here on names the tenant.
    await tenants.disable_rls(session)
    columns = _columns(principal, submission, found, BatchState.VALIDATING)
    await session.execute(queries.insert_batch(columns))
    await _copy_jobs(session, found)
    if found.report.count:
        await _keep_report(session, found)
    batch = (await session.scalars(queries.finish_ingest(found.batch_id))).one()
    told = _event(batch, EventType.BATCH_VALIDATED)
    return batch, (await session.scalars(told)).one() or ()


async def keep_refusal(
    resources: Resources, principal: Principal, submission: Submission, found: Validated
) -> str:
    """Keep the report of a file that was refused, as a failed batch without jobs; its id."""
    found.jobs = found.images = found.cost = 0
    async with resources.tenant_transaction(principal) as session:
        columns = _columns(principal, submission, found, BatchState.FAILED)
        columns |= {"summary": {}, "finished_at": queries.NOW, "started_at": queries.NOW}
        batch = (await session.scalars(queries.insert_batch(columns))).one()
        await _keep_report(session, found)
        told = _event(batch, EventType.BATCH_FAILED)
        deliveries = (await session.scalars(told)).one() or ()
    await resources.publisher.publish_deliveries(deliveries)
    return to_wire("batch", batch.id)


async def _ensure_sessions(session: AsyncSession, tenant_id: UUID, names: Sequence[str]) -> None:
    for start in range(0, len(names), _SESSIONS_AT_ONCE):
        missing = set(names[start : start + _SESSIONS_AT_ONCE])
        while missing:
            # One that is deleted just now is missing once more, and made anew.
            await session.execute(queries.ensure_sessions(tenant_id, sorted(missing)))
            held = await session.scalars(queries.hold_sessions(tenant_id, sorted(missing)))
            missing -= set(held)


async def _copy_jobs(session: AsyncSession, found: Validated) -> None:
    connection = await (await session.connection()).get_raw_connection()
    driver = cast("psycopg.AsyncConnection", connection.driver_connection)
    found.rows.seek(0)
    async with driver.cursor() as cursor, cursor.copy(queries.COPY_JOBS) as copy:
        while block := await on_thread(found.rows.read, _BLOCK):
            await copy.write(block)


async def _keep_report(session: AsyncSession, found: Validated) -> None:
    report = found.report
    kept = await on_thread(report.compressed)
    await session.execute(queries.insert_report(found.batch_id, report.count, kept))


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
    principal: Principal, submission: Submission, found: Validated, state: BatchState
) -> dict[str, Any]:
    options = submission.options
    return {
        "id": found.batch_id,
        "tenant_id": principal.tenant_id,
        "api_key_id": principal.key_id,
        "session_id": options.session_id,
        "source": submission.source,
        "batch_metadata": dict(options.metadata),
        "webhook": submission.webhook,
        "models": sorted(found.models),
        "on_error": options.on_error,
        "start_deadline": _deadline(found, options.start_within),
        "finish_deadline": _deadline(found, options.finish_within),
        "lines": found.lines,
        "invalid_lines": found.invalid_lines,
        "jobs": found.jobs,
        "images": found.images,
        "cost": found.cost,
        "priority": options.priority,
        "state": state,
    }


def _deadline(found: Validated, seconds: float | None) -> datetime | None:
    return None if seconds is None else found.now + timedelta(seconds=seconds)
