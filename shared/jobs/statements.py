"""The only SQL that changes jobs: pure builders, executed by the async and the sync side alike.

Every transition is one conditional UPDATE that returns the row, or nothing when it came too late;
it bumps `sequence`. Only the database's clock counts. Statements that a client's request leads to
take the tenant; statements of a worker take the attempt it holds (the fencing token).
"""

from collections.abc import Iterable, Sequence
from datetime import datetime, timedelta
from functools import cache
from typing import Any
from uuid import UUID

from sqlalchemy import (
    Delete,
    Integer,
    Interval,
    Select,
    Update,
    and_,
    bindparam,
    case,
    cast,
    column,
    delete,
    func,
    insert,
    literal,
    null,
    or_,
    select,
    update,
    values,
)
from sqlalchemy import Uuid as UuidType
from sqlalchemy.dialects.postgresql import JSONB, Insert
from sqlalchemy.dialects.postgresql import insert as pg_insert
from sqlalchemy.orm import aliased
from sqlalchemy.sql.dml import ReturningInsert
from sqlalchemy.sql.elements import ColumnElement
from sqlalchemy.sql.expression import CTE
from sqlalchemy.sql.selectable import TypedReturnsRows

from shared.errors import WorkerLost
from shared.gallery.models import Session
from shared.jobs.models import IdempotencyKey, Job, JobAttempt
from shared.jobs.state import RETRYABLE_STATES, AttemptOutcome, JobState

MAX_LOSSES = 2
"""A job whose worker vanished this often is quarantined: it may be what kills them."""

# `now()` is the start of the transaction; a lease must count from the moment of the statement.
NOW = func.clock_timestamp()

JobRows = TypedReturnsRows[Job]


# --- Submission ------------------------------------------------------------------------------


def ensure_session(tenant_id: UUID, session_id: str) -> Insert:
    """Make the session on its first use."""
    return pg_insert(Session).values(tenant_id=tenant_id, id=session_id).on_conflict_do_nothing()


def insert_job(job: dict[str, Any]) -> JobRows:
    """Accept a job: from here on it is not lost."""
    return insert(Job).values(**job, state=JobState.QUEUED).returning(Job)


def accept_job(job: dict[str, Any]) -> tuple[Select[Job, int], dict[str, Any]]:
    """Accept a job, in one round trip: its session, its row, and how many jobs go before it.

    Gives a statement and its parameters. `start_within` and `finish_within` are intervals that
    become the deadlines.
    """
    return _accept_job(frozenset(job)), {f"job_{name}": value for name, value in job.items()}


@cache
def _accept_job(names: frozenset[str]) -> Select[Job, int]:
    """Built once for each set of columns: building it takes longer than running it."""
    columns: dict[str, Any] = {
        name: bindparam(f"job_{name}", type_=getattr(Job, name).type)
        for name in names
        if name not in _DEADLINES
    }
    deadlines = {
        column: NOW + bindparam(f"job_{name}", type_=Interval)
        for name, column in _DEADLINES.items()
        if name in names
    }
    session = ensure_session(columns["tenant_id"], columns["session_id"]).cte("session")
    row = insert(Job).values(**columns, **deadlines, state=JobState.QUEUED)
    accepted = row.returning(Job).cte("accepted")
    ahead = _ahead_of(columns["id"], columns["model"], columns["lane"]).scalar_subquery()
    return select(aliased(Job, accepted), ahead).add_cte(session)


_DEADLINES = {"start_within": "start_deadline", "finish_within": "finish_deadline"}


def reserve_idempotency_key(
    tenant_id: UUID, key: str, request_sha256: bytes
) -> ReturningInsert[str]:
    """Take the key, or return no row when it is taken.

    Waits for a concurrent transaction that holds the same key, so that of two simultaneous
    retries one submits and the other replays.
    """
    return (
        pg_insert(IdempotencyKey)
        .values(tenant_id=tenant_id, key=key, request_sha256=request_sha256, status=0, response={})
        .on_conflict_do_nothing()
        .returning(IdempotencyKey.key)
    )


def store_idempotent_answer(
    tenant_id: UUID, key: str, status: int, response: dict[str, Any]
) -> Update:
    """Keep the answer that retries will get, in the submission's own transaction."""
    return (
        update(IdempotencyKey)
        .where(IdempotencyKey.tenant_id == tenant_id, IdempotencyKey.key == key)
        .values(status=status, response=response)
    )


def find_idempotent_answer(tenant_id: UUID, key: str) -> Select[IdempotencyKey]:
    """The remembered answer of a key."""
    return select(IdempotencyKey).where(
        IdempotencyKey.tenant_id == tenant_id, IdempotencyKey.key == key
    )


def forget_idempotency_keys(older_than: timedelta) -> Delete:
    """Retention: a key protects a retry for a day or so, not for ever."""
    return delete(IdempotencyKey).where(IdempotencyKey.created_at < NOW - older_than)


# --- Reading ---------------------------------------------------------------------------------


def get_job(tenant_id: UUID, job_id: UUID) -> Select[Job]:
    """A tenant's job."""
    return select(Job).where(Job.tenant_id == tenant_id, Job.id == job_id)


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
        statement = statement.where(Job.session_id == session_id)
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
    return _ahead_of(job.id, job.model, job.lane)


# --- A worker's transitions ------------------------------------------------------------------


def claim(job_id: UUID, worker: str, device: str, lease: timedelta) -> Select[Job]:
    """queued → running, or a dead worker's running → running: a new attempt with a new lease.

    One statement: the job, its new attempt's record, and the end of a lost attempt's record.
    No row means that the message is stale, early, or for a job that must not run (again).
    """
    overdue = and_(
        Job.state == JobState.RUNNING,
        Job.lease_until < NOW,
        Job.losses + 1 < MAX_LOSSES,
        Job.failures + 1 < Job.max_attempts,
        Job.cancel_requested.is_(False),
    )
    due = and_(
        Job.state == JobState.QUEUED,
        or_(Job.not_before.is_(None), Job.not_before <= NOW),
    )
    in_time = and_(
        or_(Job.start_deadline.is_(None), Job.start_deadline > NOW),
        or_(Job.finish_deadline.is_(None), Job.finish_deadline > NOW),
    )
    was_running = case((Job.state == JobState.RUNNING, 1), else_=0)
    claimed = (
        update(Job)
        .where(Job.id == job_id, or_(due, overdue), in_time)
        .values(
            state=JobState.RUNNING,
            sequence=Job.sequence + 1,
            attempt=Job.attempt + 1,
            losses=Job.losses + was_running,
            failures=Job.failures + was_running,
            worker=worker,
            lease_until=NOW + lease,
            started_at=NOW,
            not_before=None,
        )
        .returning(Job)
        .cte("claimed")
    )
    new_attempt = (
        insert(JobAttempt)
        .from_select(
            ["job_id", "number", "worker", "device"],
            select(claimed.c.id, claimed.c.attempt, claimed.c.worker, literal(device)),
        )
        .cte("new_attempt")
    )
    lost_attempt = _close_attempts(
        claimed, AttemptOutcome.LOST, WorkerLost.code, "the lease ran out"
    ).cte("lost_attempt")
    return select(aliased(Job, claimed)).add_cte(new_attempt, lost_attempt)


def renew_leases(held: Sequence[tuple[UUID, int]], lease: timedelta) -> JobRows:
    """Extend every (job, attempt) that is still this worker's, in one statement.

    A pair that does not come back is lost to it. `cancel_requested` comes with the row.
    """
    pairs = values(column("id", UuidType), column("attempt", Integer), name="held").data(list(held))
    return (
        update(Job)
        .where(
            Job.id == pairs.c.id,
            Job.attempt == pairs.c.attempt,
            Job.state == JobState.RUNNING,
        )
        .values(lease_until=NOW + lease)
        .returning(Job)
    )


def succeed(
    job_id: UUID, attempt: int, gpu_seconds: float, warnings: Sequence[dict[str, str]] = ()
) -> Select[Job]:
    """running → succeeded, for the holder of the attempt only."""
    return _end_attempt(
        _held(job_id, attempt).values(
            **_terminal(JobState.SUCCEEDED),
            gpu_seconds=gpu_seconds,
            warnings=Job.warnings.op("||")(cast(list(warnings), JSONB)),
        ),
        AttemptOutcome.SUCCEEDED,
        gpu_seconds=gpu_seconds,
    )


def fail(job_id: UUID, attempt: int, code: str, message: str) -> Select[Job]:
    """running → failed: the cause cannot pass."""
    return _end_attempt(
        _held(job_id, attempt).values(
            **_terminal(JobState.FAILED),
            failures=Job.failures + 1,
            error_code=code,
            error_message=message,
        ),
        AttemptOutcome.FAILED,
        code,
        message,
    )


def fail_or_retry(
    job_id: UUID, attempt: int, code: str, message: str, delay: timedelta
) -> Select[Job]:
    """running → queued after `delay`, or → failed when the attempts are used up."""
    used_up = Job.failures + 1 >= Job.max_attempts
    return _end_attempt(
        _held(job_id, attempt).values(
            state=case((used_up, JobState.FAILED), else_=JobState.QUEUED),
            sequence=Job.sequence + 1,
            failures=Job.failures + 1,
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
    return _end_attempt(_held(job_id, attempt).values(**_requeued()), AttemptOutcome.RELEASED)


def cancel_running(job_id: UUID, attempt: int) -> Select[Job]:
    """running → canceled, by the worker that stopped it."""
    return _end_attempt(
        _held(job_id, attempt).values(**_terminal(JobState.CANCELED)), AttemptOutcome.CANCELED
    )


def expire_running(job_id: UUID, attempt: int) -> Select[Job]:
    """running → expired, by the worker that saw the finish deadline pass."""
    return _end_attempt(
        _held(job_id, attempt).values(**_terminal(JobState.EXPIRED)), AttemptOutcome.EXPIRED
    )


def release_leases_of(worker: str) -> Select[Job]:
    """Give back what a former life of this worker still holds, so that it runs again at once.

    Counts as a loss: the former life ended without handing back.
    """
    return _take_from_worker(Job.worker == worker)


# --- A client's transitions ------------------------------------------------------------------


def cancel(tenant_id: UUID, job_id: UUID) -> JobRows:
    """queued → canceled at once; a running job is asked to stop. No row: already terminal."""
    queued = Job.state == JobState.QUEUED
    return (
        update(Job)
        .where(
            Job.tenant_id == tenant_id,
            Job.id == job_id,
            or_(queued, and_(Job.state == JobState.RUNNING, Job.cancel_requested.is_(False))),
        )
        .values(
            state=case((queued, JobState.CANCELED), else_=Job.state),
            finished_at=case((queued, NOW), else_=null()),
            cancel_requested=True,
            sequence=Job.sequence + 1,
        )
        .returning(Job)
    )


def request_previews(tenant_id: UUID, job_id: UUID) -> Update:
    """A follower wants previews; heard by the attempts that have not begun."""
    return (
        update(Job)
        .where(
            Job.tenant_id == tenant_id,
            Job.id == job_id,
            Job.state == JobState.QUEUED,
            Job.previews.is_(False),
        )
        .values(previews=True)
    )


def retry(tenant_id: UUID, job_id: UUID) -> JobRows:
    """failed | canceled | expired → queued with fresh counters; seeds and attempts are kept."""
    return (
        update(Job)
        .where(
            Job.tenant_id == tenant_id,
            Job.id == job_id,
            Job.state.in_(RETRYABLE_STATES),
        )
        .values(
            **_requeued(),
            failures=0,
            losses=0,
            cancel_requested=False,
            finished_at=None,
            error_code=None,
            error_message=None,
            start_deadline=None,
            finish_deadline=None,
        )
        .returning(Job)
    )


# --- The dispatcher's transitions ------------------------------------------------------------


def expire_leases() -> Select[Job]:
    """running → queued where the lease has run out, or → failed | canceled where that must be."""
    return _take_from_worker(Job.lease_until < NOW)


def expire_deadlines() -> JobRows:
    """queued → expired where the start or the finish deadline has passed."""
    return (
        update(Job)
        .where(
            Job.state == JobState.QUEUED,
            or_(Job.start_deadline < NOW, Job.finish_deadline < NOW),
        )
        .values(**_terminal(JobState.EXPIRED))
        .returning(Job)
    )


def count_due(lane: str) -> Select[str, int]:
    """(model, how many) of the jobs that should be waiting in Redis now."""
    return select(Job.model, func.count()).where(Job.lane == lane, _is_due()).group_by(Job.model)


def list_due(model: str, lane: str, limit: int) -> Select[UUID]:
    """Ids of the jobs that should be waiting in Redis now, oldest first."""
    return (
        select(Job.id)
        .where(Job.model == model, Job.lane == lane, _is_due())
        .order_by(Job.id)
        .limit(limit)
    )


# --- Parts -----------------------------------------------------------------------------------


def _ahead_of(job_id: Any, model: Any, lane: Any) -> Select[int]:
    """Interactive jobs go before all bulk jobs; within a lane the older goes first."""
    ahead = or_(
        and_(Job.lane == lane, Job.id < job_id),
        and_(Job.lane == "interactive", literal("bulk") == lane),
    )
    return select(func.count()).where(Job.state == JobState.QUEUED, Job.model == model, ahead)


def _is_due() -> ColumnElement[bool]:
    return and_(Job.state == JobState.QUEUED, or_(Job.not_before.is_(None), Job.not_before <= NOW))


def _held(job_id: UUID, attempt: int) -> Update:
    """The fence: only the holder of the running attempt may go on."""
    return update(Job).where(
        Job.id == job_id, Job.attempt == attempt, Job.state == JobState.RUNNING
    )


def _terminal(state: JobState) -> dict[str, Any]:
    return {
        "state": state,
        "sequence": Job.sequence + 1,
        "finished_at": NOW,
        "worker": None,
        "lease_until": None,
        "not_before": None,
    }


def _requeued() -> dict[str, Any]:
    return {
        "state": JobState.QUEUED,
        "sequence": Job.sequence + 1,
        "worker": None,
        "lease_until": None,
        "not_before": None,
    }


def _take_from_worker(condition: ColumnElement[bool]) -> Select[Job]:
    """A worker is gone: requeue its jobs; cancel or fail those that must not run again."""
    quarantined = or_(Job.losses + 1 >= MAX_LOSSES, Job.failures + 1 >= Job.max_attempts)
    state = case(
        (Job.cancel_requested, JobState.CANCELED),
        (quarantined, JobState.FAILED),
        else_=JobState.QUEUED,
    )
    message = "The worker was lost " + str(MAX_LOSSES) + " times, or attempts are used up."
    return _end_attempt(
        update(Job)
        .where(Job.state == JobState.RUNNING, condition)
        .values(
            **_requeued()
            | {
                "state": state,
                "losses": Job.losses + 1,
                "failures": Job.failures + 1,
                "finished_at": case((or_(Job.cancel_requested, quarantined), NOW), else_=null()),
                "error_code": case(
                    (Job.cancel_requested, null()), (quarantined, WorkerLost.code), else_=null()
                ),
                "error_message": case(
                    (Job.cancel_requested, null()), (quarantined, message), else_=null()
                ),
            }
        ),
        AttemptOutcome.LOST,
        WorkerLost.code,
        "the worker stopped renewing its lease",
    )


def _end_attempt(
    transition: Update,
    outcome: AttemptOutcome,
    code: str | None = None,
    message: str | None = None,
    gpu_seconds: float | None = None,
) -> Select[Job]:
    """The job's transition and the end of its open attempt, in one statement."""
    ended = transition.returning(Job).cte("ended")
    attempt = _close_attempts(ended, outcome, code, message, gpu_seconds).cte("attempt")
    return select(aliased(Job, ended)).add_cte(attempt)


def _close_attempts(
    jobs: CTE,
    outcome: AttemptOutcome,
    code: str | None = None,
    message: str | None = None,
    gpu_seconds: float | None = None,
) -> Update:
    return (
        update(JobAttempt)
        .where(JobAttempt.job_id == jobs.c.id, JobAttempt.finished_at.is_(None))
        .values(
            finished_at=NOW,
            outcome=outcome,
            error_code=code,
            error_message=message,
            gpu_seconds=gpu_seconds,
        )
    )
