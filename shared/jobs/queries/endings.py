"""The holder of an attempt ends it: succeeded, failed, queued again, canceled or expired."""

from collections.abc import Sequence
from datetime import timedelta
from typing import Any
from uuid import UUID

from sqlalchemy import (
    ColumnElement,
    Float,
    Integer,
    LargeBinary,
    Select,
    Update,
    and_,
    case,
    cast,
    func,
    insert,
    null,
    or_,
    select,
    true,
    union_all,
    update,
)
from sqlalchemy import Uuid as UuidType
from sqlalchemy.dialects.postgresql import JSONB

from shared.core.database import Given, cached_query, given, param
from shared.images.models import Image, Prompt
from shared.jobs.models import Job, JobAttempt
from shared.jobs.queries.transitions import (
    MAX_LOSSES,
    NOW,
    charge_key,
    charge_keys,
    close_attempts,
    end_attempt,
    requeued,
    spent,
    terminal,
    with_webhooks,
)
from shared.jobs.state import AttemptOutcome, JobState


def succeed(
    job_id: UUID,
    attempt: int,
    gpu_seconds: float,
    warnings: Sequence[dict[str, str]] = (),
    *,
    images: Sequence[dict[str, Any]] = (),
    prompt_sha256: bytes = b"",
    filtered: Sequence[dict[str, Any]] = (),
) -> Given[Select[Job]]:
    """running → succeeded, for the holder of the attempt only, together with its images.

    One statement, so one round trip, and all or nothing. `images` are rows without `prompt_id`, all
    with the same columns: the prompt is found by its tenant and hash. Where it is not on record
    nothing happens, as where the attempt is not the running one.
    """
    values = {"job": job_id, "attempt": attempt, "gpu_seconds": gpu_seconds}
    for number, image in enumerate(images):
        values |= {f"{number}_{name}": value for name, value in image.items()}
    if images:
        values |= {"tenant": images[0]["tenant_id"], "prompt": prompt_sha256}
    statement = _succeed(len(images), tuple(images[0]) if images else ())
    return given(statement, **values, warnings=list(warnings), filtered=list(filtered))


@cached_query()
def _succeed(images: int, columns: tuple[str, ...]) -> Select[Job]:
    gpu_seconds = param("gpu_seconds", Float)
    transition = _held(param("job", UuidType), param("attempt", Integer)).values(
        **terminal(JobState.SUCCEEDED),
        **spent(gpu_seconds),
        warnings=Job.warnings.op("||")(cast(param("warnings", JSONB), JSONB)),
        filtered=cast(param("filtered", JSONB), JSONB),
    )
    if not images:
        return end_attempt(transition, AttemptOutcome.SUCCEEDED, gpu_seconds=gpu_seconds)
    # Locked, so that nobody deletes it before the images name it.
    prompt = (
        select(Prompt.id)
        .where(
            Prompt.tenant_id == param("tenant", UuidType),
            Prompt.text_sha256 == param("prompt", LargeBinary),
        )
        .with_for_update(read=True, key_share=True)
        .cte("prompt")
    )
    ended = transition.where(select(prompt.c.id).exists()).returning(Job).cte("ended")
    attempt = close_attempts(ended, AttemptOutcome.SUCCEEDED, gpu_seconds=gpu_seconds)
    rows = union_all(
        *(
            select(*(_value(n, name) for name in columns), prompt.c.id).join_from(
                prompt, ended, true()
            )
            for n in range(images)
        )
    )
    inserted = insert(Image).from_select([*columns, "prompt_id"], rows).cte("inserted")
    charge = charge_key(ended, gpu_seconds)
    return with_webhooks(ended, attempt.cte("attempt"), inserted, charge)


def _value(number: int, name: str) -> ColumnElement[Any]:
    value = param(f"{number}_{name}", _TYPES[name])
    if name == "reproduces":
        # Null where it has been deleted meanwhile; locked, so that it is not before the commit.
        original = select(Image.id).where(Image.id == value)
        return original.with_for_update(read=True, key_share=True).scalar_subquery().label(name)
    return value.label(name)


_TYPES = {name: column.type for name, column in Image.__table__.columns.items()}


def fail(
    job_id: UUID,
    attempt: int,
    code: str,
    message: str,
    *,
    gpu_seconds: float = 0.0,
    filtered: Sequence[dict[str, Any]] = (),
) -> Select[Job]:
    """running → failed: the cause cannot pass. `gpu_seconds` is what this attempt has used."""
    return end_attempt(
        _held(job_id, attempt).values(
            **terminal(JobState.FAILED),
            **spent(gpu_seconds),
            failures=Job.failures + 1,
            error_code=code,
            error_message=message,
            filtered=list(filtered),
        ),
        AttemptOutcome.FAILED,
        code,
        message,
        gpu_seconds,
    )


def fail_or_retry(
    job_id: UUID,
    attempt: int,
    code: str,
    message: str,
    delay: timedelta,
    *,
    gpu_seconds: float = 0.0,
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
            **spent(gpu_seconds),
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
        gpu_seconds,
    )


def release(job_id: UUID, attempt: int, *, gpu_seconds: float = 0.0) -> Select[Job]:
    """running → queued: the worker hands the job back unharmed, at no cost to it."""
    return _stop(job_id, attempt, requeued(), AttemptOutcome.RELEASED, gpu_seconds)


def cancel_running(job_id: UUID, attempt: int, *, gpu_seconds: float = 0.0) -> Select[Job]:
    """running → canceled, by the worker that stopped it."""
    end = terminal(JobState.CANCELED)
    return _stop(job_id, attempt, end, AttemptOutcome.CANCELED, gpu_seconds)


def expire_running(job_id: UUID, attempt: int, *, gpu_seconds: float = 0.0) -> Select[Job]:
    """running → expired, by the worker that saw the finish deadline pass."""
    end = terminal(JobState.EXPIRED)
    return _stop(job_id, attempt, end, AttemptOutcome.EXPIRED, gpu_seconds)


def _stop(
    job_id: UUID, attempt: int, values: dict[str, Any], outcome: AttemptOutcome, gpu_seconds: float
) -> Select[Job]:
    transition = _held(job_id, attempt).values(**values, **spent(gpu_seconds))
    return end_attempt(transition, outcome, gpu_seconds=gpu_seconds)


def charge_late(job_id: UUID, attempt: int, gpu_seconds: float) -> Select[UUID]:
    """Charge what an attempt has used that somebody else has ended, as when its deadline passed.

    Corrects what `expire_unfinished` has charged for want of knowledge. No row where the attempt
    still runs, where as much is on record, or where its worker was given up as lost.
    """
    expired = JobAttempt.outcome == AttemptOutcome.EXPIRED
    recorded = (
        select(JobAttempt.job_id, func.coalesce(JobAttempt.gpu_seconds, 0.0).label("gpu_seconds"))
        .where(
            JobAttempt.job_id == job_id,
            JobAttempt.number == attempt,
            JobAttempt.finished_at.is_not(None),
            or_(
                JobAttempt.gpu_seconds.is_(None),
                and_(expired, JobAttempt.gpu_seconds != gpu_seconds),
            ),
        )
        .with_for_update()
        .cte("recorded")
    )
    late = (
        update(JobAttempt)
        .where(JobAttempt.job_id == recorded.c.job_id, JobAttempt.number == attempt)
        .values(gpu_seconds=gpu_seconds)
    )
    missing = gpu_seconds - recorded.c.gpu_seconds
    job = update(Job).where(Job.id == recorded.c.job_id).values(**spent(missing))
    charged = job.returning(Job, missing.label("used")).cte("charged")
    return select(charged.c.id).add_cte(late.cte("late"), charge_keys(charged))


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
    """The fence: only the holder of the running attempt may continue."""
    return update(Job).where(
        Job.id == job_id, Job.attempt == attempt, Job.state == JobState.RUNNING
    )
