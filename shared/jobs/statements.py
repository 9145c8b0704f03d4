"""The only SQL that changes jobs: pure builders, executed by the async and the sync side alike.

Every transition is one conditional UPDATE that returns the row, or nothing when it came too late;
it bumps `sequence`. Only the database's clock counts. Statements that a client's request leads to
take the tenant; statements of a worker take the attempt it holds (the fencing token).
"""

from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime, timedelta
from functools import cache
from typing import Any
from uuid import UUID

from sqlalchemy import (
    BigInteger,
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
from sqlalchemy.orm import aliased, with_expression
from sqlalchemy.sql.dml import ReturningInsert
from sqlalchemy.sql.elements import ColumnElement
from sqlalchemy.sql.expression import CTE
from sqlalchemy.sql.selectable import TypedReturnsRows, Values

from shared.batches.models import Batch
from shared.errors import WorkerLost
from shared.gallery.models import Session
from shared.jobs.models import IdempotencyKey, Job, JobAttempt
from shared.jobs.state import RETRYABLE_STATES, AttemptOutcome, JobState
from shared.webhooks import outbox
from shared.webhooks.events import ENDS_OF_JOBS, STARTS_OF_JOBS, EventType

MAX_LOSSES = 2
"""A job whose worker vanished this often is quarantined: it may be what kills them."""

# `now()` is the start of the transaction; a lease must count from the moment of the statement.
NOW = func.clock_timestamp()
# The same to a scan, but constant within a statement, so that an index can serve it.
SCAN_TIME = func.statement_timestamp()

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
    return delete(IdempotencyKey).where(IdempotencyKey.created_at < SCAN_TIME - older_than)


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


def claim(
    job_id: UUID, worker: str, device: str, lease: timedelta, *, suspect: bool = False
) -> Select[Job]:
    """queued → running, or a dead worker's running → running: a new attempt with a new lease.

    One statement: the job, its new attempt's record, and the end of a lost attempt's record.
    No row means that the message is stale, early, or for a job that must not run (again). A job
    that was in a lost worker's hands may be what killed it: such a suspect is claimed only by who
    says so, because a worker takes suspects one at a time.
    """
    may_run = or_(_is_queued_suspect(), _is_overdue()) if suspect else _is_due_and_unsuspected()
    was_running = case((Job.state == JobState.RUNNING, 1), else_=0)
    claimed = (
        update(Job)
        .where(Job.id == job_id, may_run, _is_in_time(), _is_not_paused())
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
    return _told(claimed, new_attempt, lost_attempt, events=STARTS_OF_JOBS)


def find_suspect(job_id: UUID) -> Select[Job]:
    """The job, if it may run now but was in the hands of a worker that vanished."""
    return select(Job).where(
        Job.id == job_id, or_(_is_queued_suspect(), _is_overdue()), _is_in_time()
    )


def find_own_claim(job_id: UUID, worker: str) -> Select[Job]:
    """The job, if this worker has it: the claim whose COMMIT was never answered went through."""
    return select(Job).where(
        Job.id == job_id, Job.state == JobState.RUNNING, Job.worker == worker, Job.lease_until > NOW
    )


def renew_leases(held: Sequence[tuple[UUID, int]], worker: str, lease: timedelta) -> JobRows:
    """Extend every (job, attempt) that is still this worker's, in one statement.

    `cancel_requested` comes with the row. A row that another transaction is changing right now is
    left out rather than waited for, lest one stuck commit cost the worker its other leases: ask
    `find_lost` about the pairs that do not come back.
    """
    pairs = _pairs(held)
    free = (
        select(Job.id)
        .join(pairs, and_(Job.id == pairs.c.id, Job.attempt == pairs.c.attempt))
        .where(Job.state == JobState.RUNNING)
        .with_for_update(skip_locked=True, key_share=True, of=Job)
        .cte("free")
    )
    return (
        update(Job)
        .where(Job.id == free.c.id)
        # The name too: a worker that had to take another one takes its jobs along.
        .values(lease_until=NOW + lease, worker=worker)
        .returning(Job)
    )


def find_lost(held: Sequence[tuple[UUID, int]]) -> Select[UUID, int]:
    """Those of the pairs (job, attempt) that are not running any more, or not at this attempt."""
    pairs = _pairs(held)
    still_held = and_(
        Job.id == pairs.c.id, Job.attempt == pairs.c.attempt, Job.state == JobState.RUNNING
    )
    return select(pairs.c.id, pairs.c.attempt).where(~select(Job.id).where(still_held).exists())


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
    return _end_attempt(
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
    return _told(
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
        .cte("canceled")
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
        .values(**_as_new())
        .returning(Job)
    )


def cancel_batch(tenant_id: UUID, batch_id: UUID) -> Select[Job]:
    """The same as `cancel` for all jobs of a batch; returns those that run and are to be stopped.

    The caller holds the batch's lock.
    """
    queued = Job.state == JobState.QUEUED
    changed = (
        update(Job)
        .where(
            Job.tenant_id == tenant_id,
            Job.batch_id == batch_id,
            or_(queued, and_(Job.state == JobState.RUNNING, Job.cancel_requested.is_(False))),
        )
        .values(
            state=case((queued, JobState.CANCELED), else_=Job.state),
            finished_at=case((queued, NOW), else_=null()),
            cancel_requested=True,
            sequence=Job.sequence + 1,
        )
        .returning(Job)
        .cte("canceled")
    )
    return _told(changed).where(changed.c.state == JobState.RUNNING)


def retry_batch(tenant_id: UUID, batch_id: UUID) -> Update:
    """failed | expired → queued, as `retry` does, for all jobs of a batch.

    The caller holds the batch's lock.
    """
    return (
        update(Job)
        .where(
            Job.tenant_id == tenant_id,
            Job.batch_id == batch_id,
            Job.state.in_((JobState.FAILED, JobState.EXPIRED)),
        )
        .values(**_as_new())
    )


# --- The dispatcher's transitions ------------------------------------------------------------


def expire_leases(limit: int) -> Select[Job]:
    """running → queued where the lease has run out, or → failed | canceled where that must be.

    A row that is being changed right now is left alone: its worker lives and is just committing.
    """
    overdue = _first(Job.state == JobState.RUNNING, Job.lease_until < SCAN_TIME, limit=limit)
    return _take_from_worker(Job.id == overdue.c.id)


def expire_queued(limit: int) -> JobRows:
    """queued → expired where the start or the finish deadline has passed."""
    late = or_(Job.start_deadline < SCAN_TIME, Job.finish_deadline < SCAN_TIME)
    overdue = _first(Job.state == JobState.QUEUED, late, limit=limit)
    return _told(
        update(Job)
        .where(Job.id == overdue.c.id, Job.state == JobState.QUEUED)
        .values(**_terminal(JobState.EXPIRED))
        .returning(Job)
        .cte("expired")
    )


def expire_unfinished(limit: int) -> Select[Job]:
    """running → expired where the finish deadline has passed; the worker's lease is gone then."""
    overdue = _first(Job.state == JobState.RUNNING, Job.finish_deadline < SCAN_TIME, limit=limit)
    return _end_attempt(
        update(Job)
        .where(Job.id == overdue.c.id, Job.state == JobState.RUNNING)
        .values(**_terminal(JobState.EXPIRED)),
        AttemptOutcome.EXPIRED,
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


# --- Retention ---------------------------------------------------------------------------------


def list_ended(older_than: timedelta, before: UUID, limit: int) -> Select[UUID, str]:
    """(id, session) of jobs that ended longer ago than `older_than`, oldest first.

    `before` is an id made at that time or later: a job that had ended was made earlier still, so
    the ids' own order serves as the index.
    """
    return (
        select(Job.id, Job.session_id)
        .where(Job.id < before, Job.finished_at < SCAN_TIME - older_than)
        .order_by(Job.id)
        .limit(limit)
    )


def delete_ended(job_ids: Sequence[UUID]) -> Delete:
    """Forget jobs with their attempts and image rows; their objects went before."""
    return delete(Job).where(Job.id.in_(job_ids), Job.finished_at.is_not(None))


def list_fruitless_attempts(
    after: datetime, ended_for: timedelta, since: UUID, limit: int
) -> Select[UUID, int, str, datetime | None]:
    """(job, number, session, end) of attempts that left no images, in the order of their ends.

    Those that ended after `after` and at least `ended_for` ago, of jobs with ids from `since` on.
    """
    return (
        select(JobAttempt.job_id, JobAttempt.number, Job.session_id, JobAttempt.finished_at)
        .join(Job, Job.id == JobAttempt.job_id)
        .where(
            JobAttempt.job_id >= since,
            JobAttempt.outcome != AttemptOutcome.SUCCEEDED,
            JobAttempt.finished_at > after,
            JobAttempt.finished_at < SCAN_TIME - ended_for,
        )
        .order_by(JobAttempt.finished_at)
        .limit(limit)
    )


# --- Parts -----------------------------------------------------------------------------------


def _ahead_of(job_id: Any, model: Any, lane: Any) -> Select[int]:
    """Interactive jobs go before all bulk jobs; within a lane the older goes first.

    A function of the owner's: jobs of other tenants count, too, which a tenant may not see.
    """
    return select(func.darkroom_jobs_ahead(job_id, model, lane, type_=BigInteger))


def _is_due() -> ColumnElement[bool]:
    return and_(Job.state == JobState.QUEUED, or_(Job.not_before.is_(None), Job.not_before <= NOW))


def _is_due_and_unsuspected() -> ColumnElement[bool]:
    return and_(_is_due(), Job.losses == 0)


def _is_queued_suspect() -> ColumnElement[bool]:
    return and_(_is_due(), Job.losses > 0)


def _is_overdue() -> ColumnElement[bool]:
    """In the hands of a worker that stopped renewing, and allowed another attempt."""
    return and_(
        Job.state == JobState.RUNNING,
        Job.lease_until < NOW,
        Job.losses + 1 < MAX_LOSSES,
        Job.failures + 1 < Job.max_attempts,
        Job.cancel_requested.is_(False),
    )


def _is_in_time() -> ColumnElement[bool]:
    return and_(
        or_(Job.start_deadline.is_(None), Job.start_deadline > NOW),
        or_(Job.finish_deadline.is_(None), Job.finish_deadline > NOW),
    )


def _is_not_paused() -> ColumnElement[bool]:
    paused = select(Batch.id).where(Batch.id == Job.batch_id, Batch.paused)
    return ~paused.exists()


def _pairs(held: Sequence[tuple[UUID, int]]) -> Values:
    return values(column("id", UuidType), column("attempt", Integer), name="held").data(list(held))


def _first(*conditions: ColumnElement[bool], limit: int) -> CTE:
    """The first jobs of a kind that nobody is changing right now, locked."""
    return (
        select(Job.id)
        .where(*conditions)
        .order_by(Job.id)
        .limit(limit)
        .with_for_update(skip_locked=True, key_share=True)
        .cte("overdue")
    )


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


def _as_new() -> dict[str, Any]:
    """Queued once more at a client's wish: fresh counters, no deadlines."""
    return {
        **_requeued(),
        "failures": 0,
        "losses": 0,
        "cancel_requested": False,
        "finished_at": None,
        "error_code": None,
        "error_message": None,
        "start_deadline": None,
        "finish_deadline": None,
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
    return _told(ended, attempt)


def _told(
    changed: CTE, *others: CTE, events: Mapping[JobState, EventType] = ENDS_OF_JOBS
) -> Select[Job]:
    """The jobs that a CTE has changed, and in the same statement whoever is to be told of it.

    Every statement that can end a job goes through here, so that no end is without its webhooks.
    """
    recorded = outbox.record_jobs(changed, events)
    job = aliased(Job, changed)
    return (
        select(job)
        .add_cte(changed, *others, *recorded.ctes)
        .options(with_expression(job.webhook_deliveries, recorded.deliveries))
        # A session that has read the job before would answer with what it knows.
        .execution_options(populate_existing=True)
    )


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
