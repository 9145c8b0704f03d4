"""The rules of single transitions: who may claim, what a retry resets, when attempts are used up.

Each test is one transaction, which is rolled back.
"""

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import pytest
from sqlalchemy import delete, func, insert, select, text, update
from sqlalchemy.orm import Session, sessionmaker

from shared.batches import lifecycle
from shared.core import tenants
from shared.core.ids import earliest_id_at, new_id
from shared.images import queries as image_queries
from shared.images.models import Image
from shared.jobs.models import Job, JobAttempt
from shared.jobs.queries import claims, client_requests, endings, lookups, periodic
from shared.jobs.queries import quotas as quota_queries
from tests.integration.batches.job_store import make_batch
from tests.jobs import accept, as_one, image_columns, job_columns

LEASE = timedelta(minutes=1)
NOW = func.clock_timestamp()
PAST, FUTURE = NOW - timedelta(seconds=1), NOW + timedelta(hours=1)
RUNNING = {"state": "running", "attempt": 1, "worker": "w", "lease_until": FUTURE}
LOST = {**RUNNING, "lease_until": PAST}


class Store:
    """Jobs in any state, and the statements that change them."""

    def __init__(self, session: Session, tenant: UUID) -> None:
        self.session = session
        self.tenant = tenant

    def add(self, **values: Any) -> UUID:
        """A job as it would be after a history; an open attempt if it runs."""
        job = accept(self.session, self.tenant)
        self.set(job.id, **values)
        if values.get("state") == "running":
            number = values["attempt"]
            row = {"job_id": job.id, "number": number, "worker": "w", "device": "gpu"}
            self.session.execute(insert(JobAttempt).values(row))
        return job.id

    def set(self, job: UUID, **values: Any) -> None:
        if values.get("state") == "failed":
            values = {"error_code": "internal_error", "error_message": "m", **values}
        if values:
            self.session.execute(update(Job).where(Job.id == job).values(**values))

    def get(self, job: UUID) -> Job:
        return self.session.get_one(Job, job, populate_existing=True)

    def changed(self, statement: Any) -> list[UUID]:
        """The jobs that a statement has changed or found, in its order."""
        return [row if isinstance(row, UUID) else row.id for row in self.session.scalars(statement)]

    def claim(self, job: UUID, *, poison: bool = False) -> bool:
        return self.changed(as_one(claims.claim(job, "me", "gpu", LEASE, poison=poison))) == [job]


@pytest.fixture
def store(job_store: sessionmaker[Session], tenant: UUID) -> Iterator[Store]:
    with job_store() as session:
        session.execute(delete(Job))  # what other tests have left must not be found here
        yield Store(session, tenant)
        session.rollback()


# --- Claims --------------------------------------------------------------------------------------


@pytest.mark.parametrize("which", ["start_deadline", "finish_deadline"])
@pytest.mark.parametrize("losses", [0, 1])
def test_a_job_is_claimed_before_its_deadlines_only(store: Store, which: str, losses: int) -> None:
    in_time, late = (store.add(losses=losses, **{which: at}) for at in (FUTURE, PAST))
    assert store.claim(in_time, poison=losses > 0)
    assert not store.claim(late, poison=losses > 0)
    assert store.changed(claims.find_poison_job(late)) == []


def test_a_claim_begins_a_new_attempt(store: Store) -> None:
    job = store.add(attempt=2, not_before=PAST, sequence=7)
    assert store.claim(job)
    row = store.get(job)
    now = store.session.scalars(select(NOW)).one()
    assert (row.state, row.attempt, row.sequence, row.worker) == ("running", 3, 8, "me")
    assert row.not_before is None
    assert row.started_at is not None
    assert row.lease_until is not None
    assert now - row.started_at < timedelta(seconds=30)
    assert timedelta(seconds=30) < row.lease_until - now <= LEASE
    attempt = store.session.get_one(JobAttempt, (job, 3))
    assert (attempt.worker, attempt.device, attempt.outcome) == ("me", "gpu", None)


def test_a_job_is_claimed_when_it_is_due(store: Store) -> None:
    assert not store.claim(store.add(not_before=FUTURE))
    for ended in ("succeeded", "failed", "canceled", "expired"):
        assert not store.claim(store.add(state=ended, finished_at=NOW))
    assert not store.claim(store.add(**RUNNING))


@pytest.mark.parametrize("poison", [False, True])
def test_who_asks_for_poison_jobs_gets_no_others_and_the_other_way_round(
    store: Store, poison: bool
) -> None:
    clean, suspicious = store.add(), store.add(losses=1)
    assert store.claim(clean, poison=poison) is not poison
    assert store.claim(suspicious, poison=poison) is poison
    assert not store.claim(store.add(losses=1, not_before=FUTURE), poison=poison)


@pytest.mark.parametrize(
    ("fields", "may"),
    [
        ({}, True),
        ({"failures": 1}, True),
        ({"failures": 2}, False),
        ({"losses": 1, "failures": 1}, False),
        ({"cancel_requested": True}, False),
        ({"lease_until": FUTURE}, False),
        ({"finish_deadline": PAST}, False),
    ],
    ids=["first loss", "failed once", "last attempt", "second loss", "canceled", "alive", "late"],
)
def test_a_rival_takes_over_a_lost_job_unless_the_dispatcher_must_end_it(
    store: Store, fields: dict[str, Any], may: bool
) -> None:
    job = store.add(**{**LOST, "max_attempts": 3, **fields})
    losses, failures = store.get(job).losses, store.get(job).failures
    assert not store.claim(job, poison=False)
    assert (store.changed(claims.find_poison_job(job)) == [job]) is may
    assert store.claim(job, poison=True) is may
    row = store.get(job)
    assert (row.losses, row.failures) == (losses + may, failures + may)
    assert row.worker == ("me" if may else "w")


def test_a_worker_knows_the_claim_whose_answer_it_has_not_heard(store: Store) -> None:
    mine, other = store.add(**RUNNING), store.add(**RUNNING)

    def is_own(who: str = "w", **fields: Any) -> bool:
        store.set(mine, **RUNNING | fields)
        return store.changed(claims.find_own_claim(mine, who)) == [mine]

    assert is_own()
    assert not is_own("another")
    assert not is_own(lease_until=PAST)
    assert not is_own(state="queued", worker=None, lease_until=None)
    assert store.get(other).state == "running"


def test_only_what_is_held_is_renewed_and_the_rest_is_lost(store: Store) -> None:
    held, overtaken, queued = store.add(**LOST), store.add(**{**LOST, "attempt": 2}), store.add()
    store.set(queued, attempt=1)
    pairs = [(job, 1) for job in (held, overtaken, queued)]
    assert store.changed(claims.renew_leases(pairs, "renamed", LEASE)) == [held]
    row = store.get(held)
    now = store.session.scalars(select(NOW)).one()
    assert row.lease_until is not None
    assert row.worker == "renamed"
    assert row.lease_until > now
    lost = store.session.execute(claims.find_lost(pairs)).all()
    assert {tuple(pair) for pair in lost} == {(overtaken, 1), (queued, 1)}


def test_a_worker_that_starts_again_gives_back_its_own_jobs_alone(store: Store) -> None:
    own = store.add(**RUNNING)
    others, last = store.add(**{**RUNNING, "worker": "x"}), store.add(**RUNNING, failures=2)
    changed = store.changed(claims.release_leases_of("w", LEASE))
    assert set(changed) == {own, last}
    states = [(store.get(job).state, store.get(job).worker) for job in (own, others, last)]
    assert states == [("queued", None), ("running", "x"), ("failed", None)]
    row = store.get(last)
    assert (row.error_code, row.finished_at is not None) == ("worker_lost", True)


def test_a_canceled_job_whose_worker_is_lost_has_ended_without_an_error(store: Store) -> None:
    job = store.add(**LOST, cancel_requested=True, losses=1)
    assert store.changed(periodic.expire_leases(10, LEASE)) == [job]
    row = store.get(job)
    assert (row.state, row.error_code, row.error_message) == ("canceled", None, None)
    assert row.finished_at is not None


# --- Ends ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "dies", "state"),
    [
        ({}, False, "queued"),
        ({"failures": 1}, False, "queued"),
        ({"failures": 2}, False, "failed"),
        ({"losses": 1}, False, "queued"),
        ({}, True, "queued"),
        ({"losses": 1}, True, "failed"),
    ],
)
def test_a_failure_that_can_pass_is_tried_again_until_attempts_are_used_up(
    store: Store, fields: dict[str, Any], dies: bool, state: str
) -> None:
    """A death of the worker's process counts as a loss, of which there may be one."""
    job = store.add(**RUNNING, max_attempts=3, **fields)
    before = store.get(job)
    failures, losses, sequence = before.failures, before.losses, before.sequence
    statement = endings.fail_or_retry(
        job, 1, "out_of_memory", "m", LEASE, gpu_seconds=2.0, worker_dies=dies
    )
    assert store.changed(statement) == [job]
    row, now = store.get(job), store.session.scalars(select(NOW)).one()
    assert (row.state, row.worker, row.lease_until) == (state, None, None)
    assert (row.failures, row.losses) == (failures + 1, losses + dies)
    assert (row.sequence, row.gpu_seconds) == (sequence + 1, 2.0)
    if state == "queued":
        assert (row.finished_at, row.error_code, row.error_message) == (None, None, None)
        assert row.not_before is not None
        assert timedelta(seconds=30) < row.not_before - now <= LEASE
    else:
        assert (row.error_code, row.error_message, row.not_before) == ("out_of_memory", "m", None)
        assert row.finished_at is not None
    attempt = store.session.get_one(JobAttempt, (job, 1))
    assert (attempt.outcome, attempt.error_code, attempt.gpu_seconds) == (
        *("failed", "out_of_memory"),
        2.0,
    )


def test_a_failure_that_cannot_pass_ends_the_job(store: Store) -> None:
    job = store.add(**RUNNING)
    assert store.changed(endings.fail(job, 1, "invalid_input", "m", gpu_seconds=1.5)) == [job]
    row = store.get(job)
    assert (row.state, row.failures, row.error_code) == ("failed", 1, "invalid_input")
    assert (row.error_message, row.gpu_seconds) == ("m", 1.5)
    assert row.finished_at is not None


@pytest.mark.parametrize(
    ("end", "state"),
    [
        (lambda job, attempt: as_one(endings.succeed(job, attempt, 1.0)), "succeeded"),
        (lambda job, attempt: endings.fail(job, attempt, "internal_error", "m"), "failed"),
        (
            lambda job, attempt: endings.fail_or_retry(job, attempt, "internal_error", "m", LEASE),
            "queued",
        ),
        (endings.release, "queued"),
        (endings.cancel_running, "canceled"),
        (endings.expire_running, "expired"),
    ],
    ids=["succeed", "fail", "retry", "release", "cancel", "expire"],
)
def test_only_the_running_attempt_ends_its_job(store: Store, end: Any, state: str) -> None:
    job, bystander = store.add(**{**RUNNING, "attempt": 2}), store.add(**{**RUNNING, "attempt": 2})
    assert store.changed(end(job, 1)) == []
    assert store.changed(end(job, 3)) == []
    known = store.get(job)
    sequence = known.sequence
    assert store.session.scalars(end(job, 2)).one() is known
    assert (known.state, known.sequence) == (state, sequence + 1), "what was known is old"
    assert (known.worker, known.lease_until) == (None, None)
    assert store.changed(end(job, 2)) == []
    assert store.get(bystander).state == "running"


def test_what_was_committed_is_found_by_its_attempt_alone(store: Store) -> None:
    job, other = store.add(**RUNNING), store.add(**RUNNING)
    assert store.changed(endings.find_committed(job, 1)) == []
    store.session.scalars(*endings.succeed(job, 1, 1.0)).one()
    assert store.changed(endings.find_committed(job, 1)) == [job]
    assert store.changed(endings.find_committed(job, 2)) == []
    assert store.changed(endings.find_committed(other, 1)) == []
    assert store.changed(endings.attempt_can_commit(new_id(), 1)) == []


# --- What clients ask ----------------------------------------------------------------------------


def test_a_cancellation_ends_what_waits_and_asks_what_runs(store: Store) -> None:
    queued, running = store.add(), store.add(**RUNNING)
    bystander = store.add()
    for job in (queued, running):
        sequence = store.get(job).sequence
        assert store.changed(client_requests.cancel(new_id(), job)) == []
        assert store.changed(client_requests.cancel(store.tenant, job)) == [job]
        assert store.changed(client_requests.cancel(store.tenant, job)) == []
        assert store.get(job).sequence == sequence + 1
        assert store.get(job).cancel_requested
    assert (store.get(queued).state, store.get(running).state) == ("canceled", "running")
    assert store.get(queued).finished_at is not None
    assert store.get(running).finished_at is None
    assert store.get(bystander).state == "queued"


def test_previews_are_asked_of_jobs_that_have_not_begun(store: Store) -> None:
    job, running, other = store.add(), store.add(**RUNNING), store.add()
    for tenant, which in ((new_id(), job), (store.tenant, running)):
        store.session.execute(client_requests.request_previews(tenant, which))
        assert not store.get(which).previews
    store.session.execute(client_requests.request_previews(store.tenant, job))
    assert (store.get(job).previews, store.get(other).previews) == (True, False)


ENDED = {
    "finished_at": PAST,
    "failures": 2,
    "losses": 1,
    "cancel_requested": True,
    "start_deadline": PAST,
    "finish_deadline": PAST,
    "attempt": 2,
}


@pytest.mark.parametrize("state", ["failed", "canceled", "expired"])
def test_a_retry_is_as_good_as_new(store: Store, state: str) -> None:
    job, bystander = (store.add(**ENDED, state=state, api_key_id="old") for _ in range(2))
    sequence = store.get(job).sequence
    assert store.changed(client_requests.retry(new_id(), job, "new")) == []
    assert store.changed(client_requests.retry(store.tenant, job, "new")) == [job]
    row = store.get(job)
    assert (row.state, row.failures, row.losses, row.cancel_requested) == ("queued", 0, 0, False)
    assert (row.finished_at, row.error_code, row.error_message) == (None, None, None)
    assert (row.start_deadline, row.finish_deadline) == (None, None)
    assert (row.api_key_id, row.attempt, row.sequence) == ("new", 2, sequence + 1)
    assert store.get(bystander).state == state
    assert store.claim(job)


def test_a_batch_is_canceled_and_retried_as_a_whole(
    job_store: sessionmaker[Session], store: Store
) -> None:
    """Who cancels is told which jobs run, to stop their workers; what was canceled stays so."""
    batch, other = (make_batch(job_store, store.tenant, 1) for _ in range(2))
    jobs = {"queued": store.add(batch_id=batch), "running": store.add(batch_id=batch, **RUNNING)}
    for state in ("failed", "expired", "succeeded"):
        jobs[state] = store.add(batch_id=batch, state=state, finished_at=PAST)
    elsewhere = store.add(batch_id=other)
    assert store.changed(client_requests.cancel_batch(new_id(), batch)) == []
    assert store.changed(client_requests.cancel_batch(store.tenant, batch)) == [jobs["running"]]
    assert store.changed(client_requests.cancel_batch(store.tenant, batch)) == []
    assert store.get(jobs["running"]).cancel_requested
    store.session.execute(client_requests.retry_batch(new_id(), batch, "k"))
    store.session.execute(client_requests.retry_batch(store.tenant, batch, "k"))
    states = {name: store.get(job).state for name, job in jobs.items()}
    assert states == {
        "queued": "canceled",
        "running": "running",
        "failed": "queued",
        "expired": "queued",
        "succeeded": "succeeded",
    }
    assert store.get(jobs["failed"]).api_key_id == "k"
    assert store.get(elsewhere).state == "queued"


def test_what_a_key_waits_for_is_found_without_reading_its_batches(
    job_store: sessionmaker[Session], store: Store
) -> None:
    """A plain index on the key reads all of its jobs, which one batch makes fifty thousand."""
    mark = ("api", "a1111")
    facts: dict[str, Any] = {"api_key_id": "k", "job_metadata": dict([mark])}
    batch = make_batch(job_store, store.tenant, 1)
    mine = [store.add(**facts) for _ in range(2)]
    store.add(api_key_id="k")
    many = [job_columns(store.tenant, batch_id=batch, state="queued", **facts) for _ in range(1000)]
    store.session.execute(insert(Job), many)
    store.session.execute(text("ANALYZE jobs"))
    listed = lookups.list_unfinished_of_key(store.tenant, "k", mark, 100)
    assert store.changed(listed) == mine[::-1]
    query = listed.compile(store.session.connection(), compile_kwargs={"literal_binds": True})
    plan = store.session.connection().exec_driver_sql(f"EXPLAIN {query}").scalars()
    assert "Index Scan Backward using ix_jobs_unbatched_of_key" in "\n".join(plan)


def test_what_waits_or_runs_or_succeeded_is_not_retried(store: Store) -> None:
    for job in (
        store.add(),
        store.add(**RUNNING),
        store.add(state="succeeded", finished_at=PAST),
    ):
        assert store.changed(client_requests.retry(store.tenant, job, "new")) == []


def test_a_key_hands_over_its_unfinished_jobs(store: Store) -> None:
    waiting, others = store.add(api_key_id="old"), store.add(api_key_id="other")
    ended = store.add(api_key_id="old", state="failed", finished_at=PAST)
    store.session.execute(client_requests.hand_over("old", "new"))
    keys = [store.get(job).api_key_id for job in (waiting, others, ended)]
    assert keys == ["new", "other", "old"]


# --- The dispatcher ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "statement", "state"),
    [
        (LOST, lambda limit: periodic.expire_leases(limit, LEASE), "queued"),
        ({"start_deadline": PAST}, periodic.expire_queued, "expired"),
        (
            {**RUNNING, "finish_deadline": PAST},
            lambda limit: periodic.expire_unfinished(limit, LEASE),
            "expired",
        ),
    ],
    ids=["leases", "queued", "unfinished"],
)
def test_what_is_overdue_is_taken_the_oldest_first_and_so_many_at_once(
    store: Store, fields: dict[str, Any], statement: Any, state: str
) -> None:
    jobs = [store.add(**fields) for _ in range(3)]
    store.add()
    store.add(**RUNNING)
    assert set(store.changed(statement(2))) == set(jobs[:2])
    assert store.changed(statement(2)) == jobs[2:]
    assert store.changed(statement(2)) == []
    assert {store.get(job).state for job in jobs} == {state}


def test_due_jobs_are_listed_by_queue_the_oldest_first(store: Store) -> None:
    due = [store.add() for _ in range(3)]
    store.add(model="another")
    store.add(queue_class="bulk")
    store.add(not_before=FUTURE)
    store.add(**RUNNING)
    assert store.changed(periodic.list_due("sim", "interactive", 2)) == due[:2]
    assert store.changed(periodic.list_due("sim", "interactive", 9)) == due
    counted = store.session.execute(periodic.count_due("interactive")).all()
    assert {tuple(row) for row in counted} == {("sim", 3), ("another", 1)}


def test_due_jobs_of_a_batch_are_listed_from_where_it_was_read(
    job_store: sessionmaker[Session], store: Store
) -> None:
    batch, other = (make_batch(job_store, store.tenant, 1, model="another") for _ in range(2))
    due = [store.add(batch_id=batch) for _ in range(3)]
    store.add(batch_id=batch, not_before=FUTURE)
    store.add(batch_id=batch, **RUNNING)
    store.add(batch_id=other)
    assert store.changed(lifecycle.list_next(batch, "sim", 9, None)) == due
    assert store.changed(lifecycle.list_next(batch, "sim", 1, due[0])) == due[1:2]
    assert store.changed(lifecycle.list_left_behind(batch, "sim", 9, due[1])) == due[:2]


def test_retention_finds_what_ended_long_ago_and_deletes_nothing_else(store: Store) -> None:
    long_ago = {"state": "failed", "finished_at": NOW - timedelta(days=3)}
    old = [store.add(**long_ago) for _ in range(3)]
    lately, waiting = store.add(state="failed", finished_at=PAST), store.add()
    later = new_id()
    young = store.add(**long_ago)  # it has a younger id than any job that could have ended then
    days = timedelta(days=2)
    assert store.changed(periodic.list_ended(days, later, 2)) == old[:2]
    assert store.changed(periodic.list_ended(days, later, 9)) == old
    store.session.execute(periodic.delete_ended([old[0], waiting]))
    left = set(store.session.scalars(select(Job.id)))
    assert left == {*old[1:], lately, waiting, young}


def test_attempts_without_images_are_found_once_they_have_ended_for_a_while(store: Store) -> None:
    now = datetime.now(UTC)
    hours = timedelta(hours=1)

    def attempt(ended: datetime | None, outcome: str | None) -> UUID:
        job = store.add(**RUNNING)
        values = {"finished_at": ended, "outcome": outcome}
        statement = update(JobAttempt).where(JobAttempt.job_id == job).values(**values)
        store.session.execute(statement)
        return job

    ignored = attempt(now - 4 * hours, "failed")
    since = new_id()
    later, earlier = attempt(now - 2 * hours, "lost"), attempt(now - 3 * hours, "failed")
    attempt(now - 2 * hours, "succeeded")
    attempt(now - timedelta(minutes=1), "failed")  # it may still write
    attempt(now - 9 * hours, "failed")  # seen before
    attempt(None, None)

    def found(since: UUID, limit: int = 9) -> list[UUID]:
        after = now - 5 * hours
        return store.changed(periodic.list_uncommitted_attempts(after, hours, since, limit))

    assert found(since) == [earlier, later]
    assert found(since, 1) == [earlier]
    assert found(earliest_id_at(now - hours)) == [ignored, earlier, later]


# --- Reading -------------------------------------------------------------------------------------


def test_jobs_are_listed_newest_first_by_whatever_narrows_them(store: Store) -> None:
    a, b, c = store.add(session_id="s1"), store.add(**RUNNING), store.add()
    now = datetime.now(UTC)
    # Clocks that give out ids may be as far off as this.
    for job, minutes in ((a, -14), (b, 0), (c, 14)):
        store.set(job, created_at=now + timedelta(minutes=minutes))

    def listed(limit: int = 9, tenant: UUID | None = None, **narrowed: Any) -> list[UUID]:
        return store.changed(lookups.list_jobs(tenant or store.tenant, limit, **narrowed))

    assert listed() == [c, b, a]
    assert listed(2) == [c, b]
    assert listed(before=c) == [b, a]
    assert listed(states=["running"]) == [b]
    assert listed(states=["succeeded", "running", "queued"]) == [c, b, a]
    assert listed(2, states=["queued", "running"], before=c) == [b, a]
    assert listed(states=["queued"], session_id="s1", created_before=now) == [a]
    assert listed(session_id="s1") == [c, b, a]
    assert listed(session_id="s2") == []
    assert listed(created_after=now) == [c]
    assert listed(created_before=now) == [a]
    assert listed(created_after=datetime.min.replace(tzinfo=UTC)) == [c, b, a]
    assert listed(created_before=datetime.max.replace(tzinfo=UTC)) == [c, b, a]
    assert listed(tenant=new_id()) == []


def test_a_list_does_not_go_through_what_it_leaves_out(store: Store) -> None:
    """A year of one job a second is 30 million."""
    store.add()  # with its session
    now = datetime.now(UTC)
    ended = {"state": "succeeded", "finished_at": now}
    rows = [
        {
            "id": earliest_id_at(now, timedelta(days=-number)),
            "created_at": now - timedelta(days=number),
            **ended,
        }
        for number in range(2000)
    ]
    store.session.execute(insert(Job), [job_columns(store.tenant, **row) for row in rows])
    store.session.execute(text("ANALYZE jobs"))

    def plan(**narrowed: Any) -> str:
        listed = lookups.list_jobs(store.tenant, 50, **narrowed)
        query = listed.compile(store.session.connection(), compile_kwargs={"literal_binds": True})
        explained = f"EXPLAIN (ANALYZE, TIMING OFF) {query}"
        return "\n".join(store.session.connection().exec_driver_sql(explained).scalars())

    waiting = plan(states=["queued", "failed"])
    assert waiting.count("using ix_jobs_not_succeeded") == 2
    middle = now - timedelta(days=1000.5)
    for narrowed in ({"created_before": middle}, {"created_after": now - timedelta(days=20.5)}):
        found = plan(**narrowed)
        assert "Index Scan Backward" in found
        assert "Rows Removed" not in found


def test_loads_leave_out_what_nobody_will_run(
    job_store: sessionmaker[Session], store: Store
) -> None:
    """Of a paused batch that is what waits; what runs of it goes on."""
    bulk, paused = (
        make_batch(job_store, store.tenant, 1, batch={"paused": paused}) for paused in (False, True)
    )
    store.session.execute(delete(Job))
    for batch in (None, bulk, paused):
        store.add(batch_id=batch, seeds=[1, 2], cost=7)
        store.add(batch_id=batch, **RUNNING, cost=3)
    store.add(state="failed", finished_at=PAST)
    loads = {tuple(row) for row in store.session.execute(lookups.measure_loads())}
    assert loads == {
        ("sim", "interactive", "queued", 2, 4, 14.0),
        ("sim", "interactive", "running", 3, 3, 9.0),
    }


def test_states_are_read_of_the_jobs_that_are_asked_for(store: Store) -> None:
    queued, running = store.add(), store.add(**RUNNING, sequence=3)
    store.add()
    rows = store.session.execute(lookups.read_states([running, queued, new_id()]))
    assert {tuple(row) for row in rows} == {(queued, "queued", 0), (running, "running", 3)}


def test_the_record_of_estimates_is_of_the_attempts_that_succeeded(store: Store) -> None:
    """A row for each, by its last image; device and batch size are those of the first."""
    text = "p"
    store.session.execute(image_queries.ensure_prompt(store.tenant, text, [1.0] + [0.0] * 383, "t"))
    sha256 = image_queries.text_sha256(text)

    def finish(count: int) -> list[dict[str, Any]]:
        job = store.get(store.add(**RUNNING, seeds=list(range(count))))
        images = [
            image_columns(job, index, receipt={"batch_size": 4 + index, "device": f"gpu {index}"})
            for index in range(count)
        ]
        success = endings.succeed(job.id, 1, 1.0, images=images, prompt_sha256=sha256)
        assert store.changed(as_one(success)) == [job.id]
        return images

    first, second = finish(2), finish(1)
    unfinished = finish(1)[0]
    store.set(unfinished["job_id"], state="running", finished_at=None, worker="w", lease_until=PAST)
    again = finish(1)[0]
    store.set(again["job_id"], attempt=2)
    nameless = finish(1)[0]  # one such receipt stopped all estimates
    of_it = update(Image).where(Image.id == nameless["id"])
    store.session.execute(of_it.values(receipt={"batch_size": 4}))
    since = datetime.now(UTC) - timedelta(minutes=1)
    rows = store.session.execute(lookups.list_finished(since, 9)).all()
    assert [(row.image_id, row.images, row.rows, row.device) for row in rows] == [
        (second[0]["id"], 1, 4, "gpu 0"),
        (first[1]["id"], 2, 4, "gpu 0"),
    ]
    assert len(store.session.execute(lookups.list_finished(since, 1)).all()) == 1
    long_ago = earliest_id_at(datetime.now(UTC) - timedelta(hours=1))
    store.session.execute(update(Image).where(Image.id == second[0]["id"]).values(id=long_ago))
    rows = store.session.execute(lookups.list_finished(since, 9)).all()
    assert [row.image_id for row in rows] == [first[1]["id"]]


# --- Quotas --------------------------------------------------------------------------------------


def test_a_keys_use_is_of_its_unfinished_jobs_and_of_today(store: Store) -> None:
    own = {"api_key_id": "k", "estimated_gpu_seconds": 2.0}
    store.add(**own, cost=7)
    running = store.add(**RUNNING, **own, cost=5)
    store.add(**own, cost=100, state="failed", finished_at=PAST)
    store.add(api_key_id="other", cost=1000, estimated_gpu_seconds=50.0)

    def use(key: str) -> tuple[Any, ...]:
        return tuple(store.session.execute(quota_queries.measure_use(key)).one())

    assert use("k") == (2, 7, 4.0, 0.0)
    assert use("nobody") == (0, 0, 0.0, 0.0)
    store.session.scalars(*endings.succeed(running, 1, 1.25)).one()
    assert use("k") == (1, 7, 2.0, 1.25)


def test_the_device_time_of_a_day_adds_up_however_many_attempts_end(store: Store) -> None:
    """More than there are slots, so that some share one."""
    for _ in range(70):
        job = store.add(**RUNNING, api_key_id="k")
        store.session.scalars(endings.fail(job, 1, "internal_error", "m", gpu_seconds=0.5)).one()
    assert store.session.execute(quota_queries.measure_use("k")).one() == (0, 0, 0.0, 35.0)


def test_the_queue_is_what_waits_of_all_tenants(store: Store) -> None:
    store.add(cost=7)
    store.add(cost=5, not_before=FUTURE)
    store.add(**RUNNING, cost=3)
    store.add(cost=2, state="failed", finished_at=PAST)
    measure = quota_queries.measure_queue(timedelta(minutes=1), datetime.now(UTC))
    assert store.session.execute(measure).one() == (12, 0)


def test_the_device_time_of_lost_jobs_is_summed_for_each_key(store: Store) -> None:
    began = {"started_at": NOW - timedelta(seconds=100), "lease_until": NOW - timedelta(seconds=1)}
    for key, estimate in (("a", 3.0), ("a", 4.0), ("b", 1.0), (None, 6.0)):
        store.add(**{**LOST, **began}, api_key_id=key, estimated_gpu_seconds=estimate)
    assert len(store.changed(periodic.expire_leases(10, LEASE))) == 4
    spent = {
        key: store.session.execute(quota_queries.measure_use(key)).one()[3] for key in ("a", "b")
    }
    assert spent == {"a": 7.0, "b": 1.0}


def test_the_tenant_of_another_finds_nothing(store: Store) -> None:
    job = store.add()
    stranger = store.session.scalars(tenants.ensure_tenant("strangers of rules")).one()
    assert store.changed(lookups.get_job(stranger, job)) == []
    assert store.changed(lookups.get_job(store.tenant, job)) == [job]
    store.set(job, job_metadata={"k": "v"})
    assert store.changed(lookups.find_unfinished_marked(stranger, "k", "v")) == []
    ended = store.add(job_metadata={"k": "v"}, state="failed", finished_at=PAST)
    assert store.get(ended).state == "failed"
    assert store.changed(lookups.find_unfinished_marked(store.tenant, "k", "v")) == [job]
    assert store.changed(lookups.find_unfinished_marked(store.tenant, "k", "w")) == []
