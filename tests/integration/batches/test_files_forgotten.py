"""Files that were sent ahead are forgotten after a week, objects and rows together."""

from datetime import timedelta
from uuid import UUID

import pytest
from sqlalchemy import func, select, update
from sqlalchemy.orm import Session, sessionmaker

from shared.batches import queries as batch_queries
from shared.batches.models import BatchFile
from shared.core.ids import new_id
from shared.core.storage import ObjectMissing, Storage, batch_file_key
from worker.maintenance.cleanup import KEPT, BatchFiles


def test_old_files_go_and_young_ones_stay(
    database: sessionmaker[Session], storage: Storage, tenant: UUID
) -> None:
    keys = {}
    for age in (KEPT + timedelta(minutes=1), KEPT - timedelta(minutes=1)):
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
    assert BatchFiles(database, storage).forget() == 1
    old, young = keys.values()
    with pytest.raises(ObjectMissing):
        storage.get(old)
    assert storage.get(young).body == b'"a"\n'
    with database.begin() as session:
        left = session.scalars(select(BatchFile.s3_key).where(BatchFile.s3_key.in_([old, young])))
        assert left.all() == [young]
