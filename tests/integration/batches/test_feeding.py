"""Bulk jobs reach workers through the dispatcher: all of them, fairly, and never in the way."""

import time
from uuid import UUID

import pytest
from sqlalchemy import select
from sqlalchemy.orm import Session, sessionmaker

from shared.jobs.models import Job
from shared.tenancy import statements as tenancy
from tests.integration.batches.ledger import counts, ended, make_batch
from tests.processes import WorkerProcess, wait_until


@pytest.fixture(scope="module")
def tenant(database: sessionmaker[Session]) -> UUID:
    with database.begin() as session:
        return session.scalars(tenancy.ensure_tenant("feeding")).one()


def test_a_batch_is_fed_to_its_end_and_ends_once(
    database: sessionmaker[Session],
    tenant: UUID,
    cpu_worker: WorkerProcess,
    generate_worker: WorkerProcess,
) -> None:
    started = time.monotonic()
    batch_id = make_batch(database, tenant, 300)
    batch = wait_until(lambda: ended(database, batch_id), 60, "the end of the batch")
    print("seconds", time.monotonic() - started)
    assert batch.state == "succeeded"
    assert batch.started_at is not None
    assert batch.summary == {"succeeded": {"jobs": 300, "images": 300, "cost": 300}}
    assert counts(database, [batch_id]) == {"succeeded": 300}
    with database.begin() as session:
        attempts = session.scalars(select(Job.attempt).where(Job.batch_id == batch_id)).all()
    assert set(attempts) == {1}
