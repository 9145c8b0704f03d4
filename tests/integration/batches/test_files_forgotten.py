"""Uploaded files are forgotten after a week, batches after the last of their jobs."""

from datetime import UTC, datetime, timedelta
from uuid import UUID

import pytest
from sqlalchemy import func, select, update
from sqlalchemy.orm import Session, sessionmaker

from shared.batches import queries as batch_queries
from shared.batches.models import Batch, BatchFile
from shared.core.ids import new_id
from shared.core.settings import Settings
from shared.core.storage import ObjectMissing, Storage, batch_file_key
from shared.jobs.models import Job
from shared.jobs.queries import periodic
from tests.integration.batches.job_store import make_batch
from worker.maintenance.cleanup import BATCH_FILES_KEPT, Cleanup


def test_old_files_go_and_young_ones_stay(
    settings: Settings, database: sessionmaker[Session], storage: Storage, tenant: UUID
) -> None:
    keys = {}
    for age in (BATCH_FILES_KEPT + timedelta(minutes=1), BATCH_FILES_KEPT - timedelta(minutes=1)):
        file_id = new_id()
        keys[age] = batch_file_key(file_id)
        storage.put(keys[age], b'"a"\n', "application/octet-stream")
        columns = {
            "id": file_id,
            "tenant_id": tenant,
            "name": "a.jsonl",
            "content_type": "application/octet-stream",
            "bytes": 4,
            "sha256": "0" * 64,
            "s3_key": keys[age],
        }
        with database.begin() as session:
            session.execute(batch_queries.insert_file(columns))
            session.execute(
                update(BatchFile)
                .where(BatchFile.id == file_id)
                .values(created_at=func.clock_timestamp() - age)
            )
    assert Cleanup(settings, database, storage).purge_batch_files() == 1
    old, young = keys.values()
    with pytest.raises(ObjectMissing):
        storage.get(old)
    assert storage.get(young).body == b'"a"\n'
    with database.begin() as session:
        left = session.scalars(select(BatchFile.s3_key).where(BatchFile.s3_key.in_([old, young])))
        assert left.all() == [young]


def test_batches_go_with_the_last_of_their_jobs(
    settings: Settings, database: sessionmaker[Session], storage: Storage, tenant: UUID
) -> None:
    age = timedelta(days=9)
    made = {}
    for days in (8, 10):
        ended = {"finished_at": datetime.now(UTC) - timedelta(days=days)}
        batch = ended | {"state": "failed", "summary": {}}
        job = ended | {"state": "canceled"}
        for jobs in (0, 1):
            made[days, jobs] = make_batch(database, tenant, 1, batch=batch, job=job)
        with database.begin() as session:
            emptied = session.scalars(select(Job.id).where(Job.batch_id == made[days, 0])).all()
            session.execute(periodic.delete_ended(emptied))
    kept = settings.model_copy(update={"job_retention": age})
    assert Cleanup(settings, database, storage).purge_batches() == 0
    assert Cleanup(kept, database, storage).purge_batches() >= 1
    with database.begin() as session:
        left = session.scalars(select(Batch.id).where(Batch.id.in_(made.values()))).all()
    assert {which for which, batch_id in made.items() if batch_id in left} == {
        *((8, 0), (8, 1), (10, 1))
    }
