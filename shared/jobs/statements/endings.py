"""The holder of an attempt ends it: succeeded, failed, queued again, canceled or expired."""

from collections.abc import Sequence
from datetime import timedelta
from functools import cache
from typing import Any
from uuid import UUID

from sqlalchemy import Float, Integer, Select, Update, case, cast, null, or_, select, update
from sqlalchemy import Uuid as UuidType
from sqlalchemy.dialects.postgresql import JSONB

from shared.jobs.models import Job
from shared.jobs.state import AttemptOutcome, JobState
from shared.jobs.statements.parts import (
    MAX_LOSSES,
    NOW,
    end_attempt,
    requeued,
    terminal,
)
from shared.parameters import given, with_given


def succeed(
    job_id: UUID, attempt: int, gpu_seconds: float, warnings: Sequence[dict[str, str]] = ()
) -> Select[Job]:
    """running → succeeded, for the holder of the attempt only."""
    return with_given(
        _succeed(), job=job_id, attempt=attempt, gpu_seconds=gpu_seconds, warnings=list(warnings)
    )


@cache
def _succeed() -> Select[Job]:
    gpu_seconds = given("gpu_seconds", Float)
    return end_attempt(
        _held(given("job", UuidType), given("attempt", Integer)).values(
            **terminal(JobState.SUCCEEDED),
            gpu_seconds=gpu_seconds,
            warnings=Job.warnings.op("||")(cast(given("warnings", JSONB), JSONB)),
        ),
        AttemptOutcome.SUCCEEDED,
        gpu_seconds=gpu_seconds,
    )


def fail(job_id: UUID, attempt: int, code: str, message: str) -> Select[Job]:
    """running → failed: the cause cannot pass."""
    return end_attempt(
        _held(job_id, attempt).values(
            **terminal(JobState.FAILED),
            failures=Job.failures + 1,
            error_code=code,
            error_message=message,
        ),
        AttemptOutcome.FAILED,
        code,
        message,
    )


def fail_or_retry(
    job_id: UUID,
    attempt: int,
    code: str,
    message: str,
    delay: timedelta,
    *,
    worker_dies: bool = False,
) -> Select[Job]:
    """running → queued after `delay`, or → failed when the attempts are used up.

    `worker_dies`: the attempt costs a whole process, like a lost one, and is counted as such.
    """
    used_up = Job.failures + 1 >= Job.max_attempts
    if worker_dies:
        used_up = or_(used_up, Job.losses + 1 >= MAX_LOSSES)
    return end_attempt(
        _held(job_id, attempt).values(
            state=case((used_up, JobState.FAILED), else_=JobState.QUEUED),
            sequence=Job.sequence + 1,
            failures=Job.failures + 1,
            losses=Job.losses + int(worker_dies),
            worker=None,
            lease_until=None,
            not_before=case((used_up, null()), else_=NOW + delay),
            finished_at=case((used_up, NOW), else_=null()),
            error_code=case((used_up, code), else_=null()),
            error_message=case((used_up, message), else_=null()),
        ),
        AttemptOutcome.FAILED,
        code,
        message,
    )


def release(job_id: UUID, attempt: int) -> Select[Job]:
    """running → queued: the worker hands the job back unharmed, at no cost to it."""
    return end_attempt(_held(job_id, attempt).values(**requeued()), AttemptOutcome.RELEASED)


def cancel_running(job_id: UUID, attempt: int) -> Select[Job]:
    """running → canceled, by the worker that stopped it."""
    return end_attempt(
        _held(job_id, attempt).values(**terminal(JobState.CANCELED)), AttemptOutcome.CANCELED
    )


def expire_running(job_id: UUID, attempt: int) -> Select[Job]:
    """running → expired, by the worker that saw the finish deadline pass."""
    return end_attempt(
        _held(job_id, attempt).values(**terminal(JobState.EXPIRED)), AttemptOutcome.EXPIRED
    )


def attempt_can_commit(job_id: UUID, attempt: int) -> Select[UUID]:
    """The job's id if this attempt has committed, or still may: then its objects stay."""
    return select(Job.id).where(
        Job.id == job_id,
        Job.attempt == attempt,
        Job.state.in_((JobState.RUNNING, JobState.SUCCEEDED)),
    )


def find_committed(job_id: UUID, attempt: int) -> Select[Job]:
    """The job, if it succeeded with this attempt."""
    return select(Job).where(
        Job.id == job_id, Job.attempt == attempt, Job.state == JobState.SUCCEEDED
    )


def _held(job_id: Any, attempt: Any) -> Update:
    """The fence: only the holder of the running attempt may go on."""
    return update(Job).where(
        Job.id == job_id, Job.attempt == attempt, Job.state == JobState.RUNNING
    )
