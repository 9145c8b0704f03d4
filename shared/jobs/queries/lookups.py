"""Read jobs and their attempts; nothing here changes a row."""

from collections.abc import Iterable, Sequence
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

from sqlalchemy import (
    ARRAY,
    BigInteger,
    ColumnElement,
    Float,
    Integer,
    Select,
    Text,
    Uuid,
    and_,
    any_,
    bindparam,
    cast,
    func,
    literal,
    or_,
    select,
    union_all,
)
from sqlalchemy.orm import aliased

from shared.batches.models import Batch
from shared.core.database import cached_query, only, param, with_params
from shared.core.ids import earliest_id_at
from shared.images.models import Image
from shared.jobs.models import Job, JobAttempt
from shared.jobs.queries.transitions import ahead_of
from shared.jobs.state import JobState

_SKEW = timedelta(minutes=15)
"""Ids carry the time of the API's clock, `created_at` that of the database's. With a clock further
off S3 refuses the API's requests, too."""


def get_job(tenant_id: UUID, job_id: UUID) -> Select[Job]:
    """A tenant's job."""
    return select(Job).where(Job.tenant_id == tenant_id, Job.id == job_id)


def get_whole_job(tenant_id: UUID, job_id: UUID) -> Select[Job, Image, JobAttempt]:
    """A tenant's job with its images and attempts, in one round trip: every combination of the two,
    by the image's index and the attempt's number; None in place of one where there is none.
    """
    return with_params(_get_whole_job(), tenant=tenant_id, job=job_id)


@cached_query()
def _get_whole_job() -> Select[Job, Image, JobAttempt]:
    """Built once: every client that polls or waits asks."""
    return (
        select(Job, Image, JobAttempt)
        .outerjoin(Image, Image.job_id == Job.id)
        .outerjoin(JobAttempt, JobAttempt.job_id == Job.id)
        .where(Job.tenant_id == param("tenant", Uuid), Job.id == param("job", Uuid))
        .order_by(Image.index, JobAttempt.number)
    )


def read_states(job_ids: Sequence[UUID]) -> Select[UUID, str, int]:
    """(id, state, sequence) of those of these jobs that there are, of whatever tenant."""
    wanted = bindparam("wanted", list(job_ids), ARRAY(Uuid))
    return select(Job.id, Job.state, Job.sequence).where(Job.id == any_(wanted))


def list_jobs(
    tenant_id: UUID,
    limit: int,
    *,
    before: UUID | None = None,
    states: Sequence[str] = (),
    session_id: str | None = None,
    created_after: datetime | None = None,
    created_before: datetime | None = None,
) -> Select[Job]:
    """A tenant's jobs, newest first, starting after the one with the id `before`."""
    conditions = [Job.tenant_id == tenant_id]
    if before is not None:
        conditions.append(Job.id < before)
    order: list[ColumnElement[Any]] = [Job.id.desc()]
    if session_id is not None:
        conditions.append(only(Job.session_id, session_id))
        order.insert(0, Job.session_id.desc())
    # The bounds of ids spare a walk through everything that was submitted since, or before.
    if created_after is not None:
        conditions.append(Job.created_at > created_after)
        conditions.append(Job.id > earliest_id_at(created_after, -_SKEW))
    if created_before is not None:
        conditions.append(Job.created_at < created_before)
        conditions.append(Job.id < earliest_id_at(created_before, _SKEW))
    if states:
        # Each by itself, and in the SQL's text: ix_jobs_not_succeeded is then found.
        newest = [
            select(Job.id)
            .where(*conditions, Job.state == literal(state, Text, literal_execute=True))
            .order_by(*order)
            .limit(limit)
            for state in states
        ]
        conditions = [Job.id.in_(union_all(*newest))]
    return select(Job).where(*conditions).order_by(*order).limit(limit)


def list_attempts(job_ids: Iterable[UUID]) -> Select[JobAttempt]:
    """Attempts of these jobs, in order."""
    return (
        select(JobAttempt)
        .where(JobAttempt.job_id.in_(job_ids))
        .order_by(JobAttempt.job_id, JobAttempt.number)
    )


def find_unfinished_marked(tenant_id: UUID, key: str, value: str) -> Select[UUID]:
    """Ids of a tenant's unfinished jobs with this metadata entry, newest first."""
    return (
        select(Job.id)
        .where(
            Job.tenant_id == tenant_id,
            Job.state.in_((JobState.QUEUED, JobState.RUNNING)),
            Job.job_metadata[key].astext == value,
        )
        .order_by(Job.id.desc())
    )


def list_unfinished_of_key(
    tenant_id: UUID, api_key_id: str, mark: tuple[str, str], limit: int
) -> Select[Job]:
    """A key's unfinished jobs with this metadata entry, newest first; not those of batches."""
    key, value = mark
    return (
        select(Job)
        .where(
            Job.tenant_id == tenant_id,
            Job.api_key_id == api_key_id,
            Job.finished_at.is_(None),
            Job.batch_id.is_(None),
            Job.job_metadata[key].astext == value,
        )
        .order_by(Job.id.desc())
        .limit(limit)
    )


def count_ahead(job: Job) -> Select[int]:
    """How many queued jobs of the same model a worker would take before this one."""
    return ahead_of(job.id, job.model, job.queue_class)


def find_traceparent(job_id: UUID) -> Select[str | None]:
    """The trace that the job's submission belongs to."""
    return select(Job.traceparent).where(Job.id == job_id)


def list_finished(since: datetime, limit: int) -> Select[Any]:
    """Attempts that made their last image since then, newest first.

    A row has `image_id` (of the last), the job's settings, `rows`, `device` and `gpu_seconds` of
    the first image, `run_seconds`, `total_seconds` and the `estimate` of the submission. Images'
    ids begin with the time of their making, by the worker's clock, so that their index serves; the
    last one is made just before the commit, the first one perhaps minutes earlier.
    """
    first, last = aliased(Image), aliased(Image)
    return (
        select(
            last.id.label("image_id"),
            Job.model,
            Job.width,
            Job.height,
            Job.guidance_scale,
            Job.cost,
            func.cardinality(Job.seeds).label("images"),
            cast(
                # The largest batch that it may have been in. Earlier receipts know one size, which
                # those of version 1 call `rows`.
                func.coalesce(
                    first.receipt["agreeing_batch_sizes"][-1].astext,
                    first.receipt["batch_size"].astext,
                    first.receipt["rows"].astext,
                ),
                Integer,
            ).label("rows"),
            first.receipt["device"].astext.label("device"),
            first.gpu_seconds,
            _seconds(Job.started_at, Job.finished_at).label("run_seconds"),
            _seconds(Job.created_at, Job.finished_at).label("total_seconds"),
            Job.estimate,
        )
        .join(Job, Job.id == last.job_id)
        .join(first, and_(first.job_id == Job.id, first.index == 0))
        .where(
            last.id >= earliest_id_at(since),
            last.index == func.cardinality(Job.seeds) - 1,
            Job.attempt == last.attempt,
            Job.state == JobState.SUCCEEDED,
            Job.cost > 0,  # pixels that were merely resampled say nothing of the device
            first.receipt["device"].astext.is_not(None),  # nor does a receipt that names none
        )
        .order_by(last.id.desc())
        .limit(limit)
    )


@cached_query()
def measure_loads() -> Select[str, str, str, int, int, float]:
    """(model, queue_class, state, jobs, images, cost) of unfinished jobs; not those of paused
    batches."""
    paused = select(Batch.id).where(Batch.paused)
    return (
        select(
            Job.model,
            Job.queue_class,
            Job.state,
            func.count(),
            cast(func.sum(func.cardinality(Job.seeds)), BigInteger),
            cast(func.sum(Job.cost), Float),
        )
        .where(
            Job.finished_at.is_(None),
            or_(Job.state == JobState.RUNNING, Job.batch_id.is_(None), Job.batch_id.not_in(paused)),
        )
        .group_by(Job.model, Job.queue_class, Job.state)
    )


def is_paused(batch_id: UUID) -> Select[bool]:
    """Whether a batch is paused."""
    return select(Batch.paused).where(Batch.id == batch_id)


def _seconds(start: Any, end: Any) -> Any:
    return cast(func.extract("epoch", end - start), Float)
