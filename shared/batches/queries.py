"""Queries of batches, executed by the async and the sync side alike.

What changes jobs is in `shared.jobs.queries`. Whoever changes a batch and its jobs in one
transaction takes the batch's row lock first, so that two such transactions never wait in a circle.
"""

from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

from sqlalchemy import (
    ARRAY,
    BigInteger,
    Insert,
    Integer,
    Select,
    Uuid,
    and_,
    any_,
    bindparam,
    cast,
    delete,
    func,
    insert,
    literal,
    select,
    tuple_,
    update,
)
from sqlalchemy.dialects.postgresql import insert as pg_insert
from sqlalchemy.sql.dml import ReturningDelete, ReturningInsert, ReturningUpdate

from shared.batches.models import Batch, BatchFile, BatchReport
from shared.batches.state import BatchState
from shared.images.models import Session
from shared.jobs.models import Job
from shared.jobs.queries.client_requests import WAS_ACCEPTED
from shared.jobs.state import JobState
from shared.webhooks.models import WebhookEvent

NOW = func.clock_timestamp()

RATE_WINDOW = timedelta(seconds=60)
"""A batch's rate is what its jobs did in the last minute."""

COPIED_COLUMNS = (
    *("id", "tenant_id", "api_key_id", "session_id", "batch_id", "custom_id", "line"),
    *("kind", "model", "queue_class", "prompt", "negative_prompt", "seeds"),
    *("width", "height", "steps"),
    *("guidance_scale", "true_cfg_scale", "scheduler", "strength"),
    *("resize_mode", "init_image", "loras", "options"),
    "output_format",
    *("previews", "metadata", "cost", "estimated_gpu_seconds", "start_deadline"),
    *("finish_deadline", "webhook", "state", "max_attempts"),
)
"""The columns of a batch's jobs that the ingest writes; the others have defaults."""

COPY_JOBS = f"COPY jobs ({', '.join(COPIED_COLUMNS)}) FROM STDIN"
"""Accept all jobs of a batch, in COPY's text format."""


# --- Ingest ----------------------------------------------------------------------------------


def read_clock() -> Select[datetime]:
    """The database's time, from which deadlines of a file's lines count."""
    return select(NOW)


def insert_batch(batch: dict[str, Any]) -> ReturningInsert[Batch]:
    """Begin a batch; its jobs refer to this row."""
    return insert(Batch).values(**batch).returning(Batch)


def finish_ingest(batch_id: UUID) -> ReturningUpdate[Batch]:
    """validating → queued: the last statement of the ingest."""
    return (
        update(Batch)
        .where(Batch.id == batch_id, Batch.state == BatchState.VALIDATING)
        .values(state=BatchState.QUEUED, sequence=Batch.sequence + 1)
        .returning(Batch)
    )


def insert_report(batch_id: UUID, errors: int, jsonl_zlib: bytes) -> Insert:
    """Keep what was wrong with the file."""
    return insert(BatchReport).values(batch_id=batch_id, errors=errors, jsonl_zlib=jsonl_zlib)


def ensure_sessions(tenant_id: UUID, session_ids: Sequence[str]) -> Insert:
    """Make the sessions that the lines name, where they are new."""
    rows = [{"tenant_id": tenant_id, "id": session_id} for session_id in session_ids]
    return pg_insert(Session).values(rows).on_conflict_do_nothing()


def hold_sessions(tenant_id: UUID, session_ids: Sequence[str]) -> Select[str]:
    """Those of the sessions that are there, which nobody can delete until the transaction ends."""
    return (
        select(Session.id)
        .where(Session.tenant_id == tenant_id, Session.id.in_(session_ids))
        .order_by(Session.id)
        .with_for_update(read=True, key_share=True)
    )


def insert_file(file: dict[str, Any]) -> ReturningInsert[BatchFile]:
    """An uploaded batch file."""
    return insert(BatchFile).values(**file).returning(BatchFile)


def get_file(tenant_id: UUID, file_id: UUID) -> Select[BatchFile]:
    """A tenant's file."""
    return select(BatchFile).where(BatchFile.tenant_id == tenant_id, BatchFile.id == file_id)


def delete_file(tenant_id: UUID, file_id: UUID) -> ReturningDelete[str]:
    """Delete a file; returns the key of its object."""
    return (
        delete(BatchFile)
        .where(BatchFile.tenant_id == tenant_id, BatchFile.id == file_id)
        .returning(BatchFile.s3_key)
    )


def purge_files(older_than: timedelta, limit: int) -> ReturningDelete[str]:
    """Retention: a file is of no use once its batches are made. Returns the objects' keys."""
    old = (
        select(BatchFile.id)
        .where(BatchFile.created_at < func.statement_timestamp() - older_than)
        .limit(limit)
    )
    return delete(BatchFile).where(BatchFile.id.in_(old)).returning(BatchFile.s3_key)


def delete_emptied(tenant_id: UUID, session_id: str) -> Select[UUID]:
    """Delete a session's batches that have ended and of whose jobs none is kept any more, with
    their webhooks' events; their ids."""
    jobs = select(Job.id).where(Job.batch_id == Batch.id)
    gone = (
        delete(Batch)
        .where(
            Batch.tenant_id == tenant_id,
            Batch.session_id == session_id,
            Batch.finished_at.is_not(None),
            ~jobs.exists(),
        )
        .returning(Batch.id)
        .cte("gone")
    )
    events = delete(WebhookEvent).where(
        WebhookEvent.tenant_id == tenant_id, WebhookEvent.resource_id.in_(select(gone.c.id))
    )
    return select(gone.c.id).add_cte(events.cte("events"))


def purge_emptied(older_than: timedelta, limit: int) -> ReturningDelete[UUID]:
    """Retention: a batch goes with the last of its jobs, the report of a refused file as late."""
    jobs = select(Job.id).where(Job.batch_id == Batch.id)
    emptied = (
        select(Batch.id)
        .where(Batch.finished_at < func.statement_timestamp() - older_than, ~jobs.exists())
        .limit(limit)
    )
    return delete(Batch).where(Batch.id.in_(emptied)).returning(Batch.id)


# --- Reading ---------------------------------------------------------------------------------


def get_batch(tenant_id: UUID, batch_id: UUID) -> Select[Batch]:
    """A tenant's batch."""
    return select(Batch).where(Batch.tenant_id == tenant_id, Batch.id == batch_id)


def lock_batch(tenant_id: UUID, batch_id: UUID) -> Select[Batch]:
    """A tenant's batch, to be changed together with its jobs."""
    return get_batch(tenant_id, batch_id).with_for_update(key_share=True)


def list_batches(
    tenant_id: UUID, limit: int, *, before: UUID | None = None, states: Sequence[str] = ()
) -> Select[Batch]:
    """A tenant's batches, newest first, starting after the one with the id `before`."""
    statement = select(Batch).where(Batch.tenant_id == tenant_id)
    if before is not None:
        statement = statement.where(Batch.id < before)
    if states:
        statement = statement.where(Batch.state.in_(states))
    return statement.order_by(Batch.id.desc()).limit(limit)


def count_jobs(batch_ids: Sequence[UUID]) -> Select[UUID | None, str, int, Any, int]:
    """(batch, state, jobs, images, cost) of these batches' jobs: exact, counted now."""
    return (
        select(
            Job.batch_id,
            Job.state,
            func.count(),
            func.sum(func.cardinality(Job.seeds) - func.jsonb_array_length(Job.filtered)),
            func.sum(Job.cost),
        )
        .where(Job.batch_id.in_(batch_ids))
        .group_by(Job.batch_id, Job.state)
    )


def recent_progress(batch_id: UUID) -> Select[int, int, float]:
    """(jobs, cost, seconds) of a batch's last minute; the seconds count from its start."""
    since = NOW - RATE_WINDOW
    seconds = func.extract(
        "epoch", NOW - func.greatest(func.coalesce(Batch.started_at, Batch.created_at), since)
    )
    return (
        select(func.count(Job.id), func.coalesce(func.sum(Job.cost), 0), seconds)
        .select_from(Batch)
        .outerjoin(
            Job,
            and_(
                Job.batch_id == Batch.id,
                Job.finished_at > func.statement_timestamp() - RATE_WINDOW,
                Job.state == JobState.SUCCEEDED,
            ),
        )
        .where(Batch.id == batch_id)
        .group_by(Batch.id)
    )


def list_items(
    batch: Batch,
    limit: int,
    *,
    after: UUID | None = None,
    states: Sequence[str] = (),
    custom_id: str | None = None,
) -> Select[Job]:
    """The batch's jobs in the order of its lines, starting after the one with the id `after`."""
    # Ids grow with time, and the batch's own was made just before those of its jobs.
    statement = select(Job).where(Job.batch_id == batch.id, Job.id > (after or batch.id))
    if states:
        statement = statement.where(Job.state.in_(states))
    if custom_id is not None:
        statement = statement.where(Job.custom_id == custom_id)
    return statement.order_by(Job.id).limit(limit)


def list_finished(
    batch_id: UUID,
    limit: int,
    *,
    after: tuple[datetime, UUID] | None = None,
    states: Sequence[str] = (),
) -> Select[Job]:
    """The batch's ended jobs in the order of their ends."""
    statement = select(Job).where(Job.batch_id == batch_id, Job.finished_at.is_not(None))
    if after is not None:
        statement = statement.where(
            tuple_(Job.finished_at, Job.id) > tuple_(literal(after[0]), literal(after[1]))
        )
    if states:
        statement = statement.where(Job.state.in_(states))
    return statement.order_by(Job.finished_at, Job.id).limit(limit)


def read_ends(batch_ids: Sequence[UUID]) -> Select[UUID, int]:
    """(id, when a job of it or the batch itself has last ended) of these batches, of whatever
    tenant: in microseconds since 1970, 0 before any end."""
    last = select(func.max(Job.finished_at)).where(
        Job.batch_id == Batch.id, Job.finished_at.is_not(None)
    )
    newest = func.greatest(last.scalar_subquery(), Batch.finished_at)
    microseconds = func.coalesce(func.extract("epoch", newest) * 1_000_000, 0)
    wanted = bindparam("wanted", list(batch_ids), ARRAY(Uuid))
    return select(Batch.id, cast(microseconds, BigInteger)).where(Batch.id == any_(wanted))


def get_report(batch_id: UUID) -> Select[BatchReport]:
    """What was wrong with the file; no row where nothing was."""
    return select(BatchReport).where(BatchReport.batch_id == batch_id)


def recent_speed(tenant_id: UUID, models: Sequence[str]) -> Select[int, float, float]:
    """(jobs, cost, device seconds) of the tenant's latest jobs of these models: the evidence."""
    latest = (
        select(Job.model, Job.state, Job.cost, Job.gpu_seconds)
        .where(Job.tenant_id == tenant_id)
        .order_by(Job.id.desc())
        .limit(1000)
        .subquery()
    )
    return select(
        func.count(),
        func.coalesce(func.sum(latest.c.cost), 0),
        func.coalesce(func.sum(latest.c.gpu_seconds), 0.0),
    ).where(
        latest.c.state == JobState.SUCCEEDED, latest.c.model.in_(models), latest.c.gpu_seconds > 0
    )


_FINAL_PIXELS = func.coalesce(
    cast(Job.options["hires"]["width"].astext, Integer)
    * cast(Job.options["hires"]["height"].astext, Integer),
    Job.width * Job.height,
)


def sum_retryable(tenant_id: UUID, batch_id: UUID) -> Select[int, int, float, int, Sequence[str]]:
    """What a retry would queue again: `jobs`, `cost`, `gpu_seconds` as estimated, `pixels` of the
    largest, and `models`.
    """
    return select(
        func.count().label("jobs"),
        func.coalesce(func.sum(Job.cost), 0).label("cost"),
        func.coalesce(func.sum(Job.estimated_gpu_seconds), 0.0).label("gpu_seconds"),
        func.coalesce(func.max(_FINAL_PIXELS), 0).label("pixels"),
        func.array_agg(Job.model.distinct()).label("models"),
    ).where(
        Job.tenant_id == tenant_id,
        Job.batch_id == batch_id,
        Job.state.in_((JobState.FAILED, JobState.EXPIRED)),
        WAS_ACCEPTED,
    )
