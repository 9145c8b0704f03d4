"""Parts of transitions: the new state, the end of the attempt, the charge, the webhooks."""

from collections.abc import Mapping
from datetime import timedelta
from typing import Any

from sqlalchemy import (
    BigInteger,
    Date,
    Float,
    Select,
    SmallInteger,
    Update,
    and_,
    case,
    cast,
    extract,
    func,
    literal,
    null,
    or_,
    select,
    update,
)
from sqlalchemy.dialects.postgresql import insert as pg_insert
from sqlalchemy.orm import aliased, with_expression
from sqlalchemy.sql.elements import ColumnElement
from sqlalchemy.sql.expression import CTE
from sqlalchemy.sql.selectable import TypedReturnsRows

from shared.core.errors import WorkerLost
from shared.jobs.models import DeviceTime, Job, JobAttempt
from shared.jobs.state import AttemptOutcome, JobState
from shared.webhooks import outbox
from shared.webhooks.models import ENDS_OF_JOBS, EventType

MAX_LOSSES = 2
"""A job whose worker vanished this often is a poison job: it may be what kills them."""

# `now()` is the start of the transaction; a lease must count from the moment of the statement.
NOW = func.clock_timestamp()

# The same to a scan, but constant within a statement, so that an index can serve it.
SCAN_TIME = func.statement_timestamp()
_SLOT = cast(func.floor(func.random() * 64), SmallInteger)
JobRows = TypedReturnsRows[Job]


EXACT_POSITIONS = 1000
"""How far the place in the queue is counted: all of a long queue would take milliseconds."""


def ahead_of(job_id: Any, model: Any, queue_class: Any) -> Select[int]:
    """Interactive jobs go before all bulk jobs; within a queue class the older goes first.

    Exact to `EXACT_POSITIONS`; anything above says that there are more.

    A function of the owner's: jobs of other tenants count, too, which a tenant may not see.
    """
    return select(func.darkroom_jobs_ahead(job_id, model, queue_class, type_=BigInteger))


def is_due() -> ColumnElement[bool]:
    return and_(Job.state == JobState.QUEUED, or_(Job.not_before.is_(None), Job.not_before <= NOW))


def terminal(state: JobState) -> dict[str, Any]:
    return requeued() | {"state": state, "finished_at": NOW}


def requeued() -> dict[str, Any]:
    return {
        "state": JobState.QUEUED,
        "sequence": Job.sequence + 1,
        "worker": None,
        "lease_until": None,
        "not_before": None,
    }


def spent(gpu_seconds: Any) -> dict[str, Any]:
    """Charge the job for what an attempt has used: its device time is that of all its attempts."""
    return {"gpu_seconds": func.coalesce(Job.gpu_seconds, 0.0) + gpu_seconds}


def lock_with_use(jobs: ColumnElement[bool], lease: Any) -> CTE:
    """(id, gpu_seconds) of jobs that are taken from their workers, locked.

    The time counts from the attempt's start to the last renewal of its `lease`, when the worker was
    last known to live, but is never more than one attempt's estimate: it shared the device with
    others. A job that does not run uses nothing.
    """
    renewed = func.least(Job.lease_until, NOW + lease) - lease - Job.started_at
    seconds = func.least(cast(extract("epoch", renewed), Float), Job.estimated_gpu_seconds)
    used = case((Job.state == JobState.RUNNING, func.greatest(seconds, 0.0)), else_=0.0)
    return (
        select(Job.id, used.label("gpu_seconds"))
        .where(jobs)
        .with_for_update(key_share=True)
        .cte("taken")
    )


def take(
    taken: CTE,
    values: dict[str, Any],
    outcome: AttemptOutcome,
    code: str | None = None,
    message: str | None = None,
) -> tuple[CTE, CTE, CTE]:
    """The jobs of `lock_with_use`, changed; the ends of their open attempts; the charge."""
    ended = (
        update(Job)
        .where(Job.id == taken.c.id)
        .values(**values, **spent(taken.c.gpu_seconds))
        .returning(Job, taken.c.gpu_seconds.label("used"))
        .cte("ended")
    )
    attempts = close_attempts(ended, outcome, code, message, ended.c.used)
    return ended, attempts.cte("attempt"), charge_keys(ended)


def take_from_worker(condition: ColumnElement[bool], lease: timedelta) -> Select[Job]:
    """A worker is gone: requeue its jobs; cancel or fail those that must not run again."""
    is_poison = or_(Job.losses + 1 >= MAX_LOSSES, Job.failures + 1 >= Job.max_attempts)
    state = case(
        (Job.cancel_requested, JobState.CANCELED),
        (is_poison, JobState.FAILED),
        else_=JobState.QUEUED,
    )
    reason = "The worker was lost " + str(MAX_LOSSES) + " times, or attempts are used up."
    values = requeued() | {
        "state": state,
        "losses": Job.losses + 1,
        "failures": Job.failures + 1,
        "finished_at": case((or_(Job.cancel_requested, is_poison), NOW), else_=null()),
        "error_code": case(
            (Job.cancel_requested, null()), (is_poison, WorkerLost.code), else_=null()
        ),
        "error_message": case((Job.cancel_requested, null()), (is_poison, reason), else_=null()),
    }
    taken = lock_with_use(and_(Job.state == JobState.RUNNING, condition), lease)
    message = "the worker stopped renewing its lease"
    return with_webhooks(*take(taken, values, AttemptOutcome.LOST, WorkerLost.code, message))


def end_attempt(
    transition: Update,
    outcome: AttemptOutcome,
    code: str | None = None,
    message: str | None = None,
    gpu_seconds: Any = None,
) -> Select[Job]:
    """The job's transition and the end of its open attempt, in one statement.

    With `gpu_seconds` it must be the transition of one job.
    """
    ended = transition.returning(Job).cte("ended")
    attempt = close_attempts(ended, outcome, code, message, gpu_seconds).cte("attempt")
    charge = () if gpu_seconds is None else (charge_key(ended, gpu_seconds),)
    return with_webhooks(ended, attempt, *charge)


def charge_key(ended: CTE, gpu_seconds: Any) -> CTE:
    """Add the device time of an attempt to its key's day. `ended` has one job at most."""
    seconds = literal(gpu_seconds, Float) if isinstance(gpu_seconds, float) else gpu_seconds
    return _add_device_time(
        select(ended.c.api_key_id, utc_day(NOW), _SLOT, ended.c.tenant_id, seconds).where(
            ended.c.api_key_id.is_not(None), seconds > 0
        )
    )


def charge_keys(ended: CTE) -> CTE:
    """As `charge_key`, of any number of jobs, each with what it has `used`.

    Less than nothing gives back what was charged too much.
    """
    key = (ended.c.api_key_id, ended.c.tenant_id)
    used = (
        select(*key, func.sum(ended.c.used).label("seconds"))
        .where(ended.c.api_key_id.is_not(None), ended.c.used != 0)
        .group_by(*key)
        .subquery()
    )
    return _add_device_time(
        select(used.c.api_key_id, utc_day(NOW), _SLOT, used.c.tenant_id, used.c.seconds)
    )


def _add_device_time(rows: Select[Any]) -> CTE:
    names = ["api_key_id", "day", "slot", "tenant_id", "gpu_seconds"]
    insertion = pg_insert(DeviceTime).from_select(names, rows)
    return insertion.on_conflict_do_update(
        index_elements=names[:3],
        set_={"gpu_seconds": DeviceTime.gpu_seconds + insertion.excluded.gpu_seconds},
    ).cte("charge")


def utc_day(moment: Any) -> ColumnElement[Any]:
    """The date of a moment of the database's clock."""
    return cast(func.timezone("UTC", moment), Date)


def with_webhooks(
    changed: CTE, *others: CTE, events: Mapping[JobState, EventType] = ENDS_OF_JOBS
) -> Select[Job]:
    """The jobs that a CTE has changed, and their webhooks in the same statement.

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


def close_attempts(
    jobs: CTE,
    outcome: AttemptOutcome,
    code: str | None = None,
    message: str | None = None,
    gpu_seconds: Any = None,
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
