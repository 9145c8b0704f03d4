"""Batches written straight into the database, for tests of what happens to them there."""

from collections.abc import Sequence
from typing import Any
from uuid import UUID

from sqlalchemy import insert
from sqlalchemy.orm import Session, sessionmaker

from shared.batches import queries as batch_queries
from shared.batches.models import Batch
from shared.core.ids import new_id
from shared.jobs.models import Job
from tests.jobs import ensure_session, job_columns

TERMINAL = {"succeeded", "partial", "failed", "canceled", "expired"}


def make_batch(
    database: sessionmaker[Session],
    tenant: UUID,
    jobs: int,
    *,
    key: str = "key",
    model: str = "sim",
    batch: dict[str, Any] | None = None,
    job: dict[str, Any] | None = None,
) -> UUID:
    """A batch of equal jobs, each one image with a seed of its own."""
    batch_id = new_id()
    row = {
        "id": batch_id,
        "tenant_id": tenant,
        "api_key_id": key,
        "session_id": "bulk",
        "source": "json",
        "batch_metadata": {},
        "models": [model],
        "on_error": "reject",
        "lines": jobs,
        "invalid_lines": 0,
        "jobs": jobs,
        "images": jobs,
        "cost": jobs,
        "priority": 5,
        "state": "validating",
        **(batch or {}),
    }
    columns = {
        "api_key_id": key,
        "session_id": "bulk",
        "batch_id": batch_id,
        "model": model,
        "queue_class": "bulk",
        "prompt": "a bulk image",
        "steps": 2,
        "cost": 1,
        "state": "queued",
        **(job or {}),
    }
    rows = [
        job_columns(tenant, **columns, seeds=[n], line=n, custom_id=str(n))
        for n in range(1, jobs + 1)
    ]
    with database.begin() as session:
        session.execute(ensure_session(tenant, "bulk"))
        session.execute(batch_queries.insert_batch(row))
        session.execute(insert(Job), rows)
        session.execute(batch_queries.finish_ingest(batch_id))
    return batch_id


def get(database: sessionmaker[Session], batch_id: UUID) -> Batch:
    """The batch now."""
    with database.begin() as session:
        return session.get_one(Batch, batch_id)


def ended(database: sessionmaker[Session], batch_id: UUID) -> Batch | None:
    """The batch if it has ended."""
    batch = get(database, batch_id)
    return batch if batch.state in TERMINAL else None


def counts(database: sessionmaker[Session], batch_ids: Sequence[UUID]) -> dict[str, int]:
    """How many jobs of these batches are in each state."""
    found: dict[str, int] = {}
    with database.begin() as session:
        for _, state, jobs, *_ in session.execute(batch_queries.count_jobs(list(batch_ids))):
            found[state] = found.get(state, 0) + jobs
    return found
