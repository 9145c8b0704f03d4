"""Transitions under contention: who wins, who waits, and who must not wait."""

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import timedelta
from uuid import UUID

import pytest
from sqlalchemy import func, select, text, update
from sqlalchemy.orm import Session, sessionmaker

from shared.core import quotas as quota_queries
from shared.jobs.models import DeviceTime, Job, JobAttempt
from shared.jobs.queries import claims, client_requests, endings, parts, periodic
from tests.jobs import accept

LEASE = timedelta(minutes=1)


def submit(ledger: sessionmaker[Session], tenant: UUID, **fields: object) -> UUID:
    with ledger.begin() as session:
        return accept(session, tenant, **fields).id


def claim(ledger: sessionmaker[Session], job: UUID, worker: str = "w", **how: bool) -> Job | None:
    with ledger.begin() as session:
        statement = claims.claim(job, worker, "gpu", LEASE, **how)
        return session.scalars(statement).one_or_none()


def look(ledger: sessionmaker[Session], job: UUID) -> Job:
    with ledger.begin() as session:
        return session.get_one(Job, job)


def run_out(ledger: sessionmaker[Session], job: UUID) -> None:
    with ledger.begin() as session:
        past = func.now() - timedelta(seconds=1)
        session.execute(update(Job).where(Job.id == job).values(lease_until=past))


@contextmanager
def stuck_commit(ledger: sessionmaker[Session], job: UUID, attempt: int) -> Iterator[None]:
    """A commit that has been begun and does not end for the length of the block."""
    with ledger() as session:
        assert session.scalars(endings.succeed(job, attempt, 1.0)).one_or_none() is not None
        yield
        session.rollback()


@contextmanager
def impatient(ledger: sessionmaker[Session]) -> Iterator[Session]:
    """A session whose statements fail rather than wait for a lock."""
    with ledger.begin() as session:
        session.execute(text("SET LOCAL lock_timeout = '200ms'"))
        yield session


@pytest.mark.parametrize("suspect", [False, True])
def test_of_eight_claims_at_once_one_wins(
    ledger: sessionmaker[Session], tenant: UUID, suspect: bool
) -> None:
    for _ in range(10):
        job = submit(ledger, tenant, losses=1, failures=1) if suspect else submit(ledger, tenant)
        barrier = threading.Barrier(8)

        def race(name: str, job: UUID = job, barrier: threading.Barrier = barrier) -> str | None:
            barrier.wait()
            return name if claim(ledger, job, name, suspect=suspect) is not None else None

        with ThreadPoolExecutor(8) as threads:
            won = [name for name in threads.map(race, [f"w{n}" for n in range(8)]) if name]
        assert len(won) == 1
        row = look(ledger, job)
        assert (row.state, row.attempt, row.worker) == ("running", 1, won[0])


def test_a_heartbeat_does_not_wait_for_a_stuck_commit(
    ledger: sessionmaker[Session], tenant: UUID
) -> None:
    stuck, other = submit(ledger, tenant), submit(ledger, tenant)
    for job in (stuck, other):
        assert claim(ledger, job) is not None
    held = [(stuck, 1), (other, 1)]
    with stuck_commit(ledger, stuck, 1), impatient(ledger) as session:
        renewed = session.scalars(claims.renew_leases(held, "w", LEASE)).all()
        lost = session.execute(claims.find_lost(held)).all()
    assert [job.id for job in renewed] == [other]
    assert lost == [], "a job that is being committed is not lost"


def test_the_dispatcher_leaves_a_job_alone_that_is_just_being_committed(
    ledger: sessionmaker[Session], tenant: UUID
) -> None:
    job = submit(ledger, tenant)
    assert claim(ledger, job) is not None
    run_out(ledger, job)
    with stuck_commit(ledger, job, 1), impatient(ledger) as session:
        assert session.scalars(periodic.expire_leases(1000)).all() == []
    with ledger.begin() as session:
        assert [row.id for row in session.scalars(periodic.expire_leases(1000))] == [job]


def test_a_stale_commit_is_refused_and_changes_nothing(
    ledger: sessionmaker[Session], tenant: UUID
) -> None:
    job = submit(ledger, tenant)
    assert claim(ledger, job, "first") is not None
    run_out(ledger, job)
    assert claim(ledger, job, "second", suspect=True) is not None
    with ledger.begin() as session:
        assert session.scalars(endings.succeed(job, 1, 1.0)).one_or_none() is None
        lost = session.execute(claims.find_lost([(job, 1), (job, 2)])).all()
        first = session.get_one(JobAttempt, (job, 1))
    row = look(ledger, job)
    assert (row.state, row.attempt, row.worker) == ("running", 2, "second")
    assert [tuple(pair) for pair in lost] == [(job, 1)]
    assert (first.outcome, first.error_code) == ("lost", "worker_lost")


def test_an_attempts_objects_are_kept_while_it_may_still_be_committed(
    ledger: sessionmaker[Session], tenant: UUID
) -> None:
    job = submit(ledger, tenant)
    assert claim(ledger, job) is not None

    def can_commit(attempt: int) -> bool:
        with ledger.begin() as session:
            found = session.scalars(endings.attempt_can_commit(job, attempt))
            return found.one_or_none() is not None

    assert can_commit(1)
    with ledger.begin() as session:
        session.scalars(endings.release(job, 1)).one()
    assert not can_commit(1)
    assert claim(ledger, job) is not None
    assert (can_commit(1), can_commit(2)) == (False, True)
    with ledger.begin() as session:
        session.scalars(endings.succeed(job, 2, 1.0)).one()
    assert (can_commit(1), can_commit(2)) == (False, True)


def test_the_second_loss_is_the_last(ledger: sessionmaker[Session], tenant: UUID) -> None:
    job = submit(ledger, tenant, max_attempts=5)
    for number in (1, 2):
        assert claim(ledger, job, suspect=number > 1) is not None
        run_out(ledger, job)
        with ledger.begin() as session:
            session.scalars(periodic.expire_leases(1000)).all()
    row = look(ledger, job)
    assert (row.state, row.error_code, row.attempt) == ("failed", "worker_lost", 2)
    with ledger.begin() as session:
        again = session.scalars(client_requests.retry(tenant, job, "another key")).one()
    assert (again.state, again.losses, again.attempt) == ("queued", 0, 2)
    assert again.api_key_id == "another key"


def test_what_somebody_else_ends_is_charged_late_and_once(
    ledger: sessionmaker[Session], tenant: UUID
) -> None:
    """Who let a deadline pass while the job ran had the device for free."""
    job = submit(ledger, tenant, api_key_id="late")
    assert claim(ledger, job) is not None

    def charge() -> list[UUID]:
        with ledger.begin() as session:
            return list(session.scalars(endings.charge_late(job, 1, 2.5)))

    assert charge() == []  # it runs
    with ledger.begin() as session:
        past = func.now() - timedelta(seconds=1)
        session.execute(update(Job).where(Job.id == job).values(finish_deadline=past))
        assert [one.id for one in session.scalars(periodic.expire_unfinished(1000))] == [job]
    assert [charge(), charge()] == [[job], []]
    assert look(ledger, job).gpu_seconds == 2.5
    with ledger.begin() as session:
        assert session.execute(quota_queries.measure_use("late")).one() == (0, 0, 0.0, 2.5)
        session.execute(update(DeviceTime).values(day=DeviceTime.day - 40))
        session.execute(quota_queries.purge_device_time(timedelta(days=31)))
        assert session.scalars(select(DeviceTime)).all() == []


def test_a_handed_back_job_has_lost_nothing(ledger: sessionmaker[Session], tenant: UUID) -> None:
    job = submit(ledger, tenant, max_attempts=1)
    for number in (1, 2, 3):
        assert claim(ledger, job) is not None
        with ledger.begin() as session:
            released = session.scalars(endings.release(job, number)).one()
    assert (released.state, released.failures, released.losses) == ("queued", 0, 0)
    with ledger.begin() as session:
        attempts = session.scalars(
            select(JobAttempt).where(JobAttempt.job_id == job).order_by(JobAttempt.number)
        ).all()
    assert [attempt.outcome for attempt in attempts] == ["released"] * 3


def test_a_scan_uses_the_index_of_leases(ledger: sessionmaker[Session]) -> None:
    """A volatile clock would forbid it, and each round would read every running job."""
    with ledger.begin() as session:
        session.execute(text("SET LOCAL enable_seqscan = off"))
        statement = select(Job.id).where(Job.state == "running", Job.lease_until < parts.SCAN_TIME)
        query = statement.compile(session.connection(), compile_kwargs={"literal_binds": True})
        plan = "\n".join(session.scalars(text(f"EXPLAIN {query}")))
    assert "Index Cond: (lease_until < statement_timestamp())" in plan
