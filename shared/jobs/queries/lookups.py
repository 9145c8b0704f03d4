"""Read jobs and their attempts; nothing here changes a row."""

from collections.abc import Iterable, Sequence
from datetime import datetime
from uuid import UUID

from sqlalchemy import ARRAY, Select, Uuid, any_, bindparam, select

from shared.core.database import built_once, given, only, with_given
from shared.images.models import Image
from shared.jobs.models import Job, JobAttempt
from shared.jobs.queries.parts import ahead_of
from shared.jobs.state import JobState


def get_job(tenant_id: UUID, job_id: UUID) -> Select[Job]:
    """A tenant's job."""
    return select(Job).where(Job.tenant_id == tenant_id, Job.id == job_id)


def get_whole_job(tenant_id: UUID, job_id: UUID) -> Select[Job, Image, JobAttempt]:
    """A tenant's job with its images and attempts, in one round trip: every combination of the two,
    by the image's index and the attempt's number; None in place of one where there is none.
    """
    return with_given(_get_whole_job(), tenant=tenant_id, job=job_id)


@built_once()
def _get_whole_job() -> Select[Job, Image, JobAttempt]:
    """Built once: every client that polls or waits asks."""
    return (
        select(Job, Image, JobAttempt)
        .outerjoin(Image, Image.job_id == Job.id)
        .outerjoin(JobAttempt, JobAttempt.job_id == Job.id)
        .where(Job.tenant_id == given("tenant", Uuid), Job.id == given("job", Uuid))
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
    statement = select(Job).where(Job.tenant_id == tenant_id)
    if before is not None:
        statement = statement.where(Job.id < before)
    if states:
        statement = statement.where(Job.state.in_(states))
    if session_id is not None:
        statement = statement.where(only(Job.session_id, session_id))
        statement = statement.order_by(Job.session_id.desc())
    if created_after is not None:
        statement = statement.where(Job.created_at > created_after)
    if created_before is not None:
        statement = statement.where(Job.created_at < created_before)
    return statement.order_by(Job.id.desc()).limit(limit)


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


def count_ahead(job: Job) -> Select[int]:
    """How many queued jobs of the same model a worker would take before this one."""
    return ahead_of(job.id, job.model, job.lane)


def find_traceparent(job_id: UUID) -> Select[str | None]:
    """The trace that the job's submission belongs to; no row for what is no job."""
    return select(Job.traceparent).where(Job.id == job_id)
