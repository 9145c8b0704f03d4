"""Transitions under contention: who wins, who waits, and who must not wait."""

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import timedelta
from types import SimpleNamespace
from typing import Any
from uuid import UUID

import pytest
from hypothesis import HealthCheck, settings
from hypothesis.stateful import run_state_machine_as_test
from sqlalchemy import func, select, text, update
from sqlalchemy.orm import Session, sessionmaker

from shared.core.database import no_statement_timeout, open_engine
from shared.core.ids import encode_id
from shared.core.settings import Settings
from shared.core.storage import Storage
from shared.jobs.models import DeviceTime, Job, JobAttempt
from shared.jobs.queries import claims, client_requests, endings, periodic, transitions
from shared.jobs.queries import quotas as quota_queries
from tests.chaos.job_store_machine import JobStoreMachine
from tests.jobs import accept
from worker.jobs.claim import claim_job
from worker.jobs.commit import delete_uncommitted
from worker.jobs.lease import LeaseRenewer, StopReason

LEASE = timedelta(minutes=1)


def submit(job_store: sessionmaker[Session], tenant: UUID, **fields: object) -> UUID:
    with job_store.begin() as session:
        return accept(session, tenant, **fields).id


def claim(
    job_store: sessionmaker[Session], job: UUID, worker: str = "w", **how: bool
) -> Job | None:
    with job_store.begin() as session:
        statement = claims.claim(job, worker, "gpu", LEASE, **how)
        return session.scalars(*statement).one_or_none()


def look(job_store: sessionmaker[Session], job: UUID) -> Job:
    with job_store.begin() as session:
        return session.get_one(Job, job)


def run_out(job_store: sessionmaker[Session], job: UUID) -> None:
    with job_store.begin() as session:
        past = func.now() - timedelta(seconds=1)
        session.execute(update(Job).where(Job.id == job).values(lease_until=past))


@contextmanager
def stuck_commit(job_store: sessionmaker[Session], job: UUID, attempt: int) -> Iterator[None]:
    """A commit that has been begun and does not end for the length of the block."""
    with job_store() as session:
        assert session.scalars(*endings.succeed(job, attempt, 1.0)).one_or_none() is not None
        yield
        session.rollback()


@contextmanager
def impatient(job_store: sessionmaker[Session]) -> Iterator[Session]:
    """A session whose statements fail rather than wait for a commit that does not end."""
    with job_store.begin() as session:
        session.execute(text("SET LOCAL lock_timeout = '10s'"))
        yield session


@pytest.mark.parametrize("poison", [False, True])
def test_of_eight_claims_at_once_one_wins(
    job_store: sessionmaker[Session], tenant: UUID, poison: bool
) -> None:
    for _ in range(10):
        job = (
            submit(job_store, tenant, losses=1, failures=1) if poison else submit(job_store, tenant)
        )
        barrier = threading.Barrier(8)

        def race(name: str, job: UUID = job, barrier: threading.Barrier = barrier) -> str | None:
            barrier.wait()
            return name if claim(job_store, job, name, poison=poison) is not None else None

        with ThreadPoolExecutor(8) as threads:
            won = [name for name in threads.map(race, [f"w{n}" for n in range(8)]) if name]
        assert len(won) == 1
        row = look(job_store, job)
        assert (row.state, row.attempt, row.worker) == ("running", 1, won[0])


def test_a_heartbeat_does_not_wait_for_a_stuck_commit(
    job_store: sessionmaker[Session], tenant: UUID
) -> None:
    stuck, other = submit(job_store, tenant), submit(job_store, tenant)
    for job in (stuck, other):
        assert claim(job_store, job) is not None
    held = [(stuck, 1), (other, 1)]
    with stuck_commit(job_store, stuck, 1), impatient(job_store) as session:
        renewed = session.scalars(claims.renew_leases(held, "w", LEASE)).all()
        lost = session.execute(claims.find_lost(held)).all()
    assert [job.id for job in renewed] == [other]
    assert lost == [], "a job that is being committed is not lost"


def test_a_heartbeat_stops_a_job_at_its_finish_deadline_and_not_before(
    job_store: sessionmaker[Session], tenant: UUID, settings: Settings
) -> None:
    renewer = LeaseRenewer(settings, job_store, lambda: "w")
    job = claim(job_store, submit(job_store, tenant))
    assert job is not None

    def reason_with(deadline: timedelta) -> StopReason | None:
        with job_store.begin() as session:
            late = update(Job).where(Job.id == job.id)
            session.execute(late.values(finish_deadline=func.clock_timestamp() + deadline))
        renewer.renew()
        return lease.stop_reason

    with renewer.hold(job) as lease:
        assert reason_with(settings.lease / 2) is None
        assert reason_with(timedelta(0)) is StopReason.EXPIRED
    with job_store.begin() as session:
        assert session.scalars(endings.expire_running(job.id, 1)).one().state == "expired"


def test_the_dispatcher_leaves_a_job_alone_that_is_just_being_committed(
    job_store: sessionmaker[Session], tenant: UUID
) -> None:
    job = submit(job_store, tenant)
    assert claim(job_store, job) is not None
    run_out(job_store, job)
    with stuck_commit(job_store, job, 1), impatient(job_store) as session:
        assert session.scalars(periodic.expire_leases(1000, LEASE)).all() == []
    with job_store.begin() as session:
        assert [row.id for row in session.scalars(periodic.expire_leases(1000, LEASE))] == [job]


def test_a_worker_takes_one_suspicious_job_at_a_time(
    job_store: sessionmaker[Session], tenant: UUID, settings: Settings
) -> None:
    """Of two at once nobody could tell which one kills workers; the second goes to the end."""
    first, second = (submit(job_store, tenant, losses=1, failures=1) for _ in range(2))
    put_off: list[UUID] = []
    worker: Any = SimpleNamespace(
        settings=settings,
        name="w",
        device="gpu",
        claims=True,
        database=job_store,
        leases=LeaseRenewer(settings, job_store, lambda: "w"),
        poison_slot=threading.Semaphore(),
        publish=lambda job: put_off.append(job.id),
    )
    with claim_job(worker, first) as job:
        assert job is not None
        with claim_job(worker, second) as other:
            assert other is None
        with claim_job(worker, submit(job_store, tenant)) as harmless:
            assert harmless is not None
    assert (put_off, look(job_store, second).state) == ([second], "queued")
    with claim_job(worker, second) as other:
        assert other is not None
    with job_store.begin() as session:
        for claimed in (job, harmless, other):
            session.scalars(endings.release(claimed.id, 1)).one()


def test_a_stale_commit_is_refused_and_changes_nothing(
    job_store: sessionmaker[Session], tenant: UUID
) -> None:
    job = submit(job_store, tenant)
    assert claim(job_store, job, "first") is not None
    run_out(job_store, job)
    assert claim(job_store, job, "second", poison=True) is not None
    with job_store.begin() as session:
        assert session.scalars(*endings.succeed(job, 1, 1.0)).one_or_none() is None
        lost = session.execute(claims.find_lost([(job, 1), (job, 2)])).all()
        first = session.get_one(JobAttempt, (job, 1))
    row = look(job_store, job)
    assert (row.state, row.attempt, row.worker) == ("running", 2, "second")
    assert [tuple(pair) for pair in lost] == [(job, 1)]
    assert (first.outcome, first.error_code) == ("lost", "worker_lost")


def test_an_attempts_objects_are_kept_while_it_may_still_be_committed(
    job_store: sessionmaker[Session], tenant: UUID
) -> None:
    job = submit(job_store, tenant)
    assert claim(job_store, job) is not None

    def can_commit(attempt: int) -> bool:
        with job_store.begin() as session:
            found = session.scalars(endings.attempt_can_commit(job, attempt))
            return found.one_or_none() is not None

    assert can_commit(1)
    with job_store.begin() as session:
        session.scalars(endings.release(job, 1)).one()
    assert not can_commit(1)
    assert claim(job_store, job) is not None
    assert (can_commit(1), can_commit(2)) == (False, True)
    with job_store.begin() as session:
        session.scalars(*endings.succeed(job, 2, 1.0)).one()
    assert (can_commit(1), can_commit(2)) == (False, True)


def test_the_second_loss_is_the_last(job_store: sessionmaker[Session], tenant: UUID) -> None:
    job = submit(job_store, tenant, max_attempts=5)
    for number in (1, 2):
        assert claim(job_store, job, poison=number > 1) is not None
        run_out(job_store, job)
        with job_store.begin() as session:
            session.scalars(periodic.expire_leases(1000, LEASE)).all()
    row = look(job_store, job)
    assert (row.state, row.error_code, row.attempt) == ("failed", "worker_lost", 2)
    with job_store.begin() as session:
        again = session.scalars(client_requests.retry(tenant, job, "another key")).one()
    assert (again.state, again.losses, again.attempt) == ("queued", 0, 2)
    assert again.api_key_id == "another key"


def test_what_somebody_else_ends_is_charged_late_and_once(
    job_store: sessionmaker[Session], tenant: UUID
) -> None:
    """Who let a deadline pass while the job ran had the device for free."""
    job = submit(job_store, tenant, api_key_id="late")
    assert claim(job_store, job) is not None

    def charge() -> list[UUID]:
        with job_store.begin() as session:
            return list(session.scalars(endings.charge_late(job, 1, 2.5)))

    assert charge() == []  # it runs
    with job_store.begin() as session:
        past = func.now() - timedelta(seconds=1)
        session.execute(update(Job).where(Job.id == job).values(finish_deadline=past))
        assert [one.id for one in session.scalars(periodic.expire_unfinished(1000, LEASE))] == [job]
    assert [charge(), charge()] == [[job], []]
    assert look(job_store, job).gpu_seconds == 2.5
    with job_store.begin() as session:
        assert session.execute(quota_queries.measure_use("late")).one() == (0, 0, 0.0, 2.5)
        session.execute(update(DeviceTime).values(day=DeviceTime.day - 40))
        session.execute(quota_queries.purge_device_time(timedelta(days=31)))
        assert session.scalars(select(DeviceTime)).all() == []


def test_what_a_lost_worker_has_used_is_charged(
    job_store: sessionmaker[Session], tenant: UUID
) -> None:
    """From the attempt's start to the last renewal, at most the estimate."""
    estimates = (4.0, 60.0, 0.0)
    jobs = [
        submit(job_store, tenant, api_key_id="lost", estimated_gpu_seconds=s) for s in estimates
    ]
    for job in jobs:
        assert claim(job_store, job) is not None
    began = func.now() - timedelta(minutes=2)
    renewed = began + timedelta(seconds=30)
    with job_store.begin() as session:
        session.execute(
            update(Job)
            .where(Job.id.in_(jobs))
            .values(started_at=began, lease_until=renewed + LEASE)
        )
        lost = session.scalars(periodic.expire_leases(1000, LEASE)).all()
        assert {job.id for job in lost} >= set(jobs)
        session.scalars(periodic.expire_leases(1000, LEASE)).all()
    assert [look(job_store, job).gpu_seconds for job in jobs] == pytest.approx([4.0, 30.0, 0.0])
    attempts = select(JobAttempt.gpu_seconds).where(JobAttempt.job_id.in_(jobs))
    with job_store.begin() as session:
        recorded = session.scalars(attempts.order_by(JobAttempt.job_id)).all()
        assert session.execute(quota_queries.measure_use("lost")).one()[3] == pytest.approx(34.0)
        # A worker that comes back all the same is not charged for a second time.
        assert session.scalars(endings.charge_late(jobs[1], 1, 50.0)).all() == []
    assert recorded == pytest.approx([4.0, 30.0, 0.0])


@pytest.mark.parametrize("ending", ["rival claims", "deadline passes", "deadline, lease alive"])
def test_what_a_dead_worker_has_used_is_charged_whoever_notices_first(
    job_store: sessionmaker[Session], tenant: UUID, ending: str
) -> None:
    """Not only by `expire_leases`: the device was used all the same."""
    job = submit(job_store, tenant, api_key_id=ending, estimated_gpu_seconds=60.0)
    assert claim(job_store, job, "dead") is not None
    began = func.now() - timedelta(seconds=40 if ending == "deadline, lease alive" else 400)
    past = func.now() - timedelta(seconds=1)
    with job_store.begin() as session:
        lease = {"started_at": began, "lease_until": began + timedelta(seconds=30) + LEASE}
        session.execute(update(Job).where(Job.id == job).values(lease))
        if ending == "rival claims":
            assert session.scalars(*claims.claim(job, "w", "gpu", LEASE, poison=True)).one()
        else:
            session.execute(update(Job).where(Job.id == job).values(finish_deadline=past))
            session.scalars(periodic.expire_unfinished(1000, LEASE)).all()
    assert look(job_store, job).gpu_seconds == pytest.approx(30.0)
    with job_store.begin() as session:
        assert session.get_one(JobAttempt, (job, 1)).gpu_seconds == pytest.approx(30.0)
        assert session.execute(quota_queries.measure_use(ending)).one()[3] == pytest.approx(30.0)
    if ending == "rival claims":
        with job_store.begin() as session:
            done = session.scalars(*endings.succeed(job, 2, 5.0)).one()
        assert done.gpu_seconds == pytest.approx(35.0)
        assert (done.losses, done.failures) == (1, 1)


@pytest.mark.parametrize("used", [0.0, 2.5, 45.0])
def test_a_living_worker_corrects_the_charge_for_a_passed_deadline(
    job_store: sessionmaker[Session], tenant: UUID, used: float
) -> None:
    key = f"corrected {used}"
    job = submit(job_store, tenant, api_key_id=key, estimated_gpu_seconds=60.0)
    assert claim(job_store, job) is not None
    began = func.now() - timedelta(seconds=40)
    with job_store.begin() as session:
        fields = {"started_at": began, "lease_until": began + timedelta(seconds=30) + LEASE}
        late = {**fields, "finish_deadline": func.now() - timedelta(seconds=1)}
        session.execute(update(Job).where(Job.id == job).values(late))
        session.scalars(periodic.expire_unfinished(1000, LEASE)).all()
    for corrected in ([job], []):
        with job_store.begin() as session:
            assert session.scalars(endings.charge_late(job, 1, used)).all() == corrected
    assert look(job_store, job).gpu_seconds == pytest.approx(used)
    with job_store.begin() as session:
        assert session.get_one(JobAttempt, (job, 1)).gpu_seconds == used
        assert session.execute(quota_queries.measure_use(key)).one()[3] == pytest.approx(used)


def test_a_handed_back_job_has_lost_nothing(job_store: sessionmaker[Session], tenant: UUID) -> None:
    job = submit(job_store, tenant, max_attempts=1)
    for number in (1, 2, 3):
        assert claim(job_store, job) is not None
        with job_store.begin() as session:
            released = session.scalars(endings.release(job, number)).one()
    assert (released.state, released.failures, released.losses) == ("queued", 0, 0)
    with job_store.begin() as session:
        attempts = session.scalars(
            select(JobAttempt).where(JobAttempt.job_id == job).order_by(JobAttempt.number)
        ).all()
    assert [attempt.outcome for attempt in attempts] == ["released"] * 3


def test_a_scan_uses_the_index_of_leases(job_store: sessionmaker[Session]) -> None:
    """A volatile clock would forbid it, and each round would read every running job."""
    with job_store.begin() as session:
        session.execute(text("SET LOCAL enable_seqscan = off"))
        statement = select(Job.id).where(
            Job.state == "running", Job.lease_until < transitions.SCAN_TIME
        )
        query = statement.compile(session.connection(), compile_kwargs={"literal_binds": True})
        plan = "\n".join(session.scalars(text(f"EXPLAIN {query}")))
    assert "Index Cond: (lease_until < statement_timestamp())" in plan


# A worker that believes its lease lost removes its objects only if nobody can ever name them


def test_objects_outlive_a_lease_that_only_looks_lost(
    job_store: sessionmaker[Session], tenant: UUID, storage: Storage
) -> None:
    with job_store.begin() as session:
        job = accept(session, tenant).id
    key = f"s1/{encode_id('job', job)}/1/00.png"
    storage.put(key, b"x", "image/png")

    def left_after_discarding() -> list[str]:
        delete_uncommitted(job_store, storage, job, 1, [key])
        return storage.list_keys(key)

    with job_store.begin() as session:
        session.scalars(*claims.claim(job, "w", "gpu", timedelta(minutes=1))).one()
    assert left_after_discarding() == [key], "the commit may be on its way"
    with job_store.begin() as session:
        session.scalars(endings.release(job, 1)).one()
    assert left_after_discarding() == []


def test_committed_objects_are_never_discarded(
    job_store: sessionmaker[Session], tenant: UUID, storage: Storage
) -> None:
    with job_store.begin() as session:
        job = accept(session, tenant).id
        session.scalars(*claims.claim(job, "w", "gpu", timedelta(minutes=1))).one()
        session.scalars(*endings.succeed(job, 1, 1.0)).one()
    key = f"s1/{encode_id('job', job)}/1/00.png"
    storage.put(key, b"x", "image/png")
    delete_uncommitted(job_store, storage, job, 1, [key])
    assert storage.list_keys(key) == [key]


# The database agrees with a model of it, whatever clients, workers and zombies do (short run)


@pytest.mark.long
def test_random_histories(job_store: sessionmaker[Session]) -> None:
    histories = 0

    class Machine(JobStoreMachine):
        database = job_store

        def teardown(self) -> None:
            nonlocal histories
            histories += 1
            super().teardown()

    run_state_machine_as_test(
        Machine,
        settings=settings(
            max_examples=25,
            stateful_step_count=30,
            deadline=None,
            database=None,
            suppress_health_check=list(HealthCheck),
        ),
    )
    # Each history asserts after every step that the database is as the model expects.
    assert histories >= 25


# Building an index takes minutes where there are many rows, and everything else milliseconds


def test_only_the_unhurried_have_no_limit_on_a_statement(settings: Settings) -> None:
    engine = open_engine(settings, pool_size=1)
    limit = text("SHOW statement_timeout")
    try:
        with no_statement_timeout(engine) as connection:
            assert connection.scalar(limit) == "0"
        with engine.connect() as connection:
            assert connection.scalar(limit) == "30s"
    finally:
        engine.dispose()
