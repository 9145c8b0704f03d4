"""Bulk jobs reach workers through the dispatcher: all of them, fairly, and never in the way."""

from datetime import timedelta
from uuid import UUID

import pytest
import redis
from sqlalchemy import func, select, update
from sqlalchemy.orm import Session, sessionmaker

from shared.batches.models import Batch
from shared.core.broker import generate_queue
from shared.core.ids import encode_id
from shared.jobs.models import Job
from tests.integration.batches.job_store import counts, ended, make_batch
from tests.processes import ApiProcess, WorkerProcess, wait_until

pytestmark = pytest.mark.usefixtures("cpu_worker", "generate_worker")


def resume(database: sessionmaker[Session], *batch_ids: UUID) -> None:
    """Let batches that were made paused begin at the same time."""
    with database.begin() as session:
        session.execute(update(Batch).where(Batch.id.in_(batch_ids)).values(paused=False))


def start_order(database: sessionmaker[Session], batch_ids: list[UUID]) -> list[UUID]:
    """The batch of each job, in the order of their starts."""
    with database.begin() as session:
        statement = select(Job.batch_id).where(Job.batch_id.in_(batch_ids))
        return list(session.scalars(statement.order_by(Job.started_at)))


def wait_ended(database: sessionmaker[Session], batch_id: UUID) -> str:
    batch = wait_until(lambda: ended(database, batch_id), 90, "the end of the batch")
    return str(batch.state)


@pytest.mark.long
def test_a_batch_is_fed_to_its_end_and_runs_each_job_once(
    database: sessionmaker[Session], tenant: UUID
) -> None:
    batch_id = make_batch(database, tenant, 80)
    batch = wait_until(lambda: ended(database, batch_id), 90, "the end of the batch")
    assert batch.state == "succeeded"
    assert batch.started_at is not None
    assert batch.summary == {"succeeded": {"jobs": 80, "images": 80, "cost": 80}}
    assert counts(database, [batch_id]) == {"succeeded": 80}
    with database.begin() as session:
        attempts = session.scalars(select(Job.attempt).where(Job.batch_id == batch_id)).all()
    assert set(attempts) == {1}


def test_the_small_do_not_wait_for_the_large(database: sessionmaker[Session], tenant: UUID) -> None:
    large, *small = (
        make_batch(database, tenant, jobs, key=key, batch={"paused": True})
        for key, jobs in (("large", 120), ("small", 10), ("smaller", 10))
    )
    resume(database, large, *small)
    for batch_id in (*small, large):
        assert wait_ended(database, batch_id) == "succeeded"
    order = start_order(database, [large, *small])
    last_of_small = max(place for place, batch_id in enumerate(order) if batch_id != large)
    # Of three keys each gets a third: 30 places, and some more, as many threads take them.
    assert last_of_small < 80


def test_a_higher_priority_overtakes(database: sessionmaker[Session], tenant: UUID) -> None:
    first = make_batch(database, tenant, 90, batch={"paused": True})
    urgent = make_batch(database, tenant, 10, batch={"paused": True, "priority": 9})
    resume(database, first, urgent)
    assert wait_ended(database, urgent) == "succeeded"
    assert wait_ended(database, first) == "succeeded"
    order = start_order(database, [first, urgent])
    assert max(place for place, batch_id in enumerate(order) if batch_id == urgent) < 65


@pytest.mark.long
def test_what_redis_loses_is_fed_again(
    database: sessionmaker[Session],
    tenant: UUID,
    redis_client: "redis.Redis",
    generate_worker: WorkerProcess,
) -> None:
    queue = generate_queue("sim", "bulk")
    with generate_worker.frozen():
        batch_id = make_batch(database, tenant, 60, job={"steps": 20})
        wait_until(lambda: redis_client.llen(queue), 30, "messages in the bulk queue")
        redis_client.delete(queue)
    assert wait_ended(database, batch_id) == "succeeded"
    assert counts(database, [batch_id]) == {"succeeded": 60}


def test_an_interactive_job_never_waits_for_a_bulk_job_to_end(
    database: sessionmaker[Session], tenant: UUID, api: ApiProcess
) -> None:
    # Each of these takes minutes on the simulated GPU, and there are more than threads.
    batch_id = make_batch(database, tenant, 40, job={"steps": 100_000})
    try:
        wait_until(lambda: counts(database, [batch_id]).get("running", 0) >= 8, 60, "busy slots")
        for _ in range(3):
            answer = api.http.post(
                "/v1/jobs",
                json={"prompt": "quick", "model": "sim", "steps": 2},
                headers={"Prefer": "wait=60"},
            )
            assert answer.status_code == 202, answer.text
            assert answer.json()["state"] == "succeeded", answer.text
        standing = counts(database, [batch_id])
    finally:
        # Which tells the worker; its next heartbeat may be ten seconds away.
        api.http.post(f"/v1/batches/{encode_id('batch', batch_id)}/cancel")
    assert standing.get("succeeded", 0) == 0
    assert standing["running"] < 15  # threads; the reserve was left alone
    wait_ended(database, batch_id)


def test_jobs_that_are_not_due_yet_are_fed_when_they_are(
    database: sessionmaker[Session], tenant: UUID
) -> None:
    batch_id = make_batch(database, tenant, 5, batch={"paused": True})
    soon = func.clock_timestamp() + timedelta(seconds=2)
    with database.begin() as session:
        session.execute(update(Job).where(Job.batch_id == batch_id).values(not_before=soon))
    resume(database, batch_id)
    assert wait_ended(database, batch_id) == "succeeded"
