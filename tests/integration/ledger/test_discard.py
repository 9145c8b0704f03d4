"""A worker that believes its lease lost removes its objects only if nobody can ever name them."""

from datetime import timedelta
from types import SimpleNamespace
from typing import Any, cast
from uuid import UUID

from sqlalchemy.orm import Session, sessionmaker

from shared.core.ids import to_wire
from shared.core.storage import Storage
from shared.jobs.queries import claims, endings
from tests.jobs import accept
from worker.process import WorkerProcess


def test_objects_outlive_a_lease_that_only_looks_lost(
    ledger: sessionmaker[Session], tenant: UUID, storage: Storage
) -> None:
    with ledger.begin() as session:
        job = accept(session, tenant).id
    key = f"s1/{to_wire('job', job)}/1/00.png"
    storage.put(key, b"x", "image/png")
    worker = cast(Any, SimpleNamespace(database=ledger, storage=storage))

    def left_after_discarding() -> list[str]:
        WorkerProcess.discard(worker, job, 1, [key])
        return storage.list_keys(key)

    with ledger.begin() as session:
        session.scalars(claims.claim(job, "w", "gpu", timedelta(minutes=1))).one()
    assert left_after_discarding() == [key], "the commit may be on its way"
    with ledger.begin() as session:
        session.scalars(endings.release(job, 1)).one()
    assert left_after_discarding() == []


def test_committed_objects_are_never_discarded(
    ledger: sessionmaker[Session], tenant: UUID, storage: Storage
) -> None:
    with ledger.begin() as session:
        job = accept(session, tenant).id
        session.scalars(claims.claim(job, "w", "gpu", timedelta(minutes=1))).one()
        session.scalars(endings.succeed(job, 1, 1.0)).one()
    key = f"s1/{to_wire('job', job)}/1/00.png"
    storage.put(key, b"x", "image/png")
    WorkerProcess.discard(
        cast(Any, SimpleNamespace(database=ledger, storage=storage)), job, 1, [key]
    )
    assert storage.list_keys(key) == [key]
