"""A worker takes a job, keeps its lease, and learns what it has lost."""

from collections.abc import Sequence
from datetime import timedelta
from uuid import UUID

from sqlalchemy import (
    Integer,
    Interval,
    Select,
    Text,
    and_,
    case,
    column,
    insert,
    or_,
    select,
    update,
    values,
)
from sqlalchemy import Uuid as UuidType
from sqlalchemy.sql.elements import ColumnElement
from sqlalchemy.sql.expression import CTE
from sqlalchemy.sql.selectable import Values

from shared.batches.models import Batch
from shared.core.database import Given, cached_query, given, param
from shared.core.errors import WorkerLost
from shared.jobs.models import Job, JobAttempt
from shared.jobs.queries.transitions import (
    MAX_LOSSES,
    NOW,
    JobRows,
    is_due,
    lock_with_use,
    take,
    take_from_worker,
    with_webhooks,
)
from shared.jobs.state import AttemptOutcome, JobState
from shared.webhooks.models import STARTS_OF_JOBS


def claim(
    job_id: UUID, worker: str, device: str, lease: timedelta, *, poison: bool = False
) -> Given[Select[Job]]:
    """queued → running, or a dead worker's running → running: a new attempt with a new lease.

    One statement: the job, its new attempt's record, and the end of a lost attempt's record.
    No row means that the message is stale, early, or for a job that must not run (again). A job
    that a lost worker held may be what killed it, so it is claimed with `poison` only: a worker
    takes such jobs one at a time.
    """
    return given(_claim(poison), job=job_id, worker=worker, device=device, lease=lease)


@cached_query()
def _claim(poison: bool) -> Select[Job]:
    job = and_(Job.id == param("job", UuidType), _is_in_time(), _is_not_paused())
    lease = param("lease", Interval)
    running = {
        "state": JobState.RUNNING,
        "sequence": Job.sequence + 1,
        "attempt": Job.attempt + 1,
        "worker": param("worker", Text),
        "lease_until": NOW + lease,
        "started_at": NOW,
        "not_before": None,
    }
    if not poison:
        due = update(Job).where(job, is_due(), Job.losses == 0).values(**running)
        claimed = due.returning(Job).cte("claimed")
        return with_webhooks(claimed, _new_attempt(claimed), events=STARTS_OF_JOBS)
    taken = lock_with_use(and_(job, or_(_is_queued_poison(), _is_overdue())), lease)
    lost = case((Job.state == JobState.RUNNING, 1), else_=0)
    running |= {"losses": Job.losses + lost, "failures": Job.failures + lost}
    claimed, *ends = take(taken, running, AttemptOutcome.LOST, WorkerLost.code, "the lease ran out")
    return with_webhooks(claimed, *ends, _new_attempt(claimed), events=STARTS_OF_JOBS)


def _new_attempt(claimed: CTE) -> CTE:
    row = select(claimed.c.id, claimed.c.attempt, claimed.c.worker, param("device", Text))
    columns = ["job_id", "number", "worker", "device"]
    return insert(JobAttempt).from_select(columns, row).cte("new_attempt")


def find_poison_job(job_id: UUID) -> Select[Job]:
    """The job, if it may run now but was held by a worker that vanished."""
    return select(Job).where(
        Job.id == job_id, or_(_is_queued_poison(), _is_overdue()), _is_in_time()
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


def release_leases_of(worker: str, lease: timedelta) -> Select[Job]:
    """Give back what a former life of this worker still holds, so that it runs again at once.

    Counts as a loss: the former life ended without handing back.
    """
    return take_from_worker(Job.worker == worker, lease)


def _is_queued_poison() -> ColumnElement[bool]:
    return and_(is_due(), Job.losses > 0)


def _is_overdue() -> ColumnElement[bool]:
    """Held by a worker that stopped renewing, and allowed another attempt."""
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
