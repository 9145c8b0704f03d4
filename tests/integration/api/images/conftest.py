"""Unlike beside: the API whose model `sim` a worker serves."""

from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import httpx2
import pytest
from sqlalchemy.orm import Session, sessionmaker

from shared.core.ids import decode_id
from shared.images import queries
from tests.integration.api.test_bad_input import check_problem
from tests.processes import ApiProcess, WorkerProcess


@pytest.fixture(scope="session")
def http(api: ApiProcess, generate_worker: WorkerProcess) -> httpx2.Client:
    """A client with the key of the tenant `tests`."""
    return api.http


@pytest.fixture
def stranger(api: ApiProcess, other_api_key: str) -> Iterator[httpx2.Client]:
    """A client of another tenant."""
    with api.client(other_api_key) as client:
        yield client


def assert_kept_for_its_job(
    http: httpx2.Client, database: sessionmaker[Session], job: dict[str, Any], upload: str
) -> None:
    """From deletion until the job has ended, from the sweep of unused uploads as long as it is."""
    check_problem(http.delete(f"/v1/uploads/{upload}"), 409, "job_not_finished")
    assert http.post(f"/v1/jobs/{job['id']}/cancel").status_code == 200
    with database() as session:
        old = "UPDATE uploads SET created_at = now() - interval '9 days', used_at = NULL"
        session.connection().exec_driver_sql(old)
        found = session.execute(queries.list_unused_uploads(timedelta(days=1), 9999)).all()
        unused = {row.id for row in found}
        session.rollback()
    assert decode_id("upl", upload) not in unused
    assert http.delete(f"/v1/uploads/{upload}").status_code == 200
