"""Queries of batches, executed by the async and the sync side alike.

What changes jobs is in `shared.jobs.queries`. Whoever changes a batch and its jobs in one
transaction takes the batch's row lock first, so that two such transactions never wait in a circle.
"""

from collections.abc import Iterable, Sequence
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

from sqlalchemy import (
    Insert,
    Select,
    Update,
    and_,
    delete,
    func,
    insert,
    literal,
    null,
    select,
    tuple_,
    update,
)
from sqlalchemy.dialects.postgresql import insert as pg_insert
from sqlalchemy.sql.dml import ReturningDelete, ReturningInsert, ReturningUpdate
from sqlalchemy.sql.elements import ColumnElement

from shared.batches.models import Batch, BatchFile, BatchReport
from shared.batches.state import BatchState
from shared.images.models import Image, Session, Upload
from shared.jobs.models import Job
from shared.jobs.state import JobState
from shared.webhooks.events import EventType

NOW = func.clock_timestamp()


RATE_WINDOW = timedelta(seconds=60)
"""A batch's rate is what its jobs did in the last minute."""


COPIED_COLUMNS = (
    *("id", "tenant_id", "api_key_id", "session_id", "batch_id", "custom_id", "line"),
    *("kind", "model", "lane", "prompt", "negative_prompt", "seeds", "width", "height", "steps"),
    *("guidance_scale", "scheduler", "strength", "resize_mode", "init_image", "output_format"),
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
    """A file that was sent ahead."""
    return insert(BatchFile).values(**file).returning(BatchFile)


def get_file(tenant_id: UUID, file_id: UUID) -> Select[BatchFile]:
    """A tenant's file."""
    return select(BatchFile).where(BatchFile.tenant_id == tenant_id, BatchFile.id == file_id)


def delete_file(tenant_id: UUID, file_id: UUID) -> ReturningDelete[str]:
    """Forget a file; returns the key of its object."""
    return (
        delete(BatchFile)
        .where(BatchFile.tenant_id == tenant_id, BatchFile.id == file_id)
        .returning(BatchFile.s3_key)
    )


def forget_files(older_than: timedelta, limit: int) -> ReturningDelete[str]:
    """Retention: a file is of no use once its batches are made. Returns the objects' keys."""
    old = (
        select(BatchFile.id)
        .where(BatchFile.created_at < func.statement_timestamp() - older_than)
        .limit(limit)
    )
    return delete(BatchFile).where(BatchFile.id.in_(old)).returning(BatchFile.s3_key)


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
    """(batch, state, jobs, images, cost) of these batches' jobs: the exact counts, asked anew."""
    return (
        select(
            Job.batch_id,
            Job.state,
            func.count(),
            func.sum(func.cardinality(Job.seeds)),
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


def list_start_images(
    tenant_id: UUID, ids: Iterable[UUID], table: type[Upload] | type[Image]
) -> Select[UUID, str, str, int, int]:
    """(id, S3 key, SHA-256, width, height) of those ids that are images of this tenant."""
    return select(table.id, table.s3_key, table.sha256, table.width, table.height).where(
        table.tenant_id == tenant_id, table.id.in_(ids)
    )


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
        latest.c.state == JobState.SUCCEEDED,
        latest.c.model.in_(models),
        latest.c.gpu_seconds > 0,
    )


def sum_retryable(tenant_id: UUID, batch_id: UUID) -> Select[int, int, float, int, Sequence[str]]:
    """What a retry would queue again: `jobs`, `cost`, `gpu_seconds` as estimated, `pixels` of the
    largest, and `models`.
    """
    return select(
        func.count().label("jobs"),
        func.coalesce(func.sum(Job.cost), 0).label("cost"),
        func.coalesce(func.sum(Job.estimated_gpu_seconds), 0.0).label("gpu_seconds"),
        func.coalesce(func.max(Job.width * Job.height), 0).label("pixels"),
        func.array_agg(Job.model.distinct()).label("models"),
    ).where(
        Job.tenant_id == tenant_id,
        Job.batch_id == batch_id,
        Job.state.in_((JobState.FAILED, JobState.EXPIRED)),
    )


# --- A client's changes ----------------------------------------------------------------------


def set_paused(tenant_id: UUID, batch_id: UUID, paused: bool) -> ReturningUpdate[Batch]:
    """Pause or resume feeding; no row: the batch has ended or is as wished already."""
    return _change_active(tenant_id, batch_id, Batch.paused.is_not(paused), paused=paused)


def set_priority(tenant_id: UUID, batch_id: UUID, priority: int) -> ReturningUpdate[Batch]:
    """Let the batch go before or after others of its key; no row: it has ended."""
    return _change_active(tenant_id, batch_id, literal(True), priority=priority)


def request_cancel(tenant_id: UUID, batch_id: UUID) -> ReturningUpdate[Batch]:
    """Mark the batch as canceled; its jobs are canceled in the same transaction."""
    return _change_active(
        tenant_id, batch_id, Batch.cancel_requested.is_(False), cancel_requested=True, paused=False
    )


def reopen(tenant_id: UUID, batch_id: UUID, api_key_id: str) -> Update:
    """A key has a job of the batch tried again: what had ended runs again, in that key's turn."""
    return (
        update(Batch)
        .where(Batch.tenant_id == tenant_id, Batch.id == batch_id, Batch.finished_at.is_not(None))
        .values(
            state=BatchState.RUNNING,
            api_key_id=api_key_id,
            finished_at=null(),
            summary=null(),
            cancel_requested=False,
            paused=False,
            sequence=Batch.sequence + 1,
        )
    )


def _change_active(
    tenant_id: UUID, batch_id: UUID, condition: ColumnElement[bool], **values: Any
) -> ReturningUpdate[Batch]:
    return (
        update(Batch)
        .where(
            Batch.tenant_id == tenant_id,
            Batch.id == batch_id,
            Batch.finished_at.is_(None),
            condition,
        )
        .values(**values, sequence=Batch.sequence + 1)
        .returning(Batch)
    )


_END_EVENTS = {
    BatchState.SUCCEEDED: EventType.BATCH_COMPLETED,
    BatchState.PARTIAL: EventType.BATCH_COMPLETED,
    BatchState.FAILED: EventType.BATCH_FAILED,
    BatchState.EXPIRED: EventType.BATCH_FAILED,
    BatchState.CANCELED: EventType.BATCH_CANCELED,
}


def end_event(state: BatchState) -> EventType:
    """The event of a terminal state; the state itself is in its data."""
    return _END_EVENTS[state]


def snapshot(batch: Batch) -> dict[str, Any]:
    """The batch as it is now, for an event's data."""
    summary = batch.summary or {}
    return {
        "state": str(batch.state),
        "session_id": batch.session_id,
        "lines": batch.lines,
        "invalid_lines": batch.invalid_lines,
        "jobs": batch.jobs,
        "images": batch.images,
        "counts": {state: counted["jobs"] for state, counted in summary.items()},
        "metadata": batch.batch_metadata,
        "created_at": batch.created_at.isoformat(),
        "started_at": batch.started_at and batch.started_at.isoformat(),
        "finished_at": batch.finished_at and batch.finished_at.isoformat(),
    }
