"""An API that is killed while it takes in a batch leaves the batch whole, or nothing of it."""

import threading
from pathlib import Path

import httpx2
import pytest
from sqlalchemy import func, select, text
from sqlalchemy.orm import Session, sessionmaker

from shared.batches.models import Batch
from shared.batches.queries import COPY_JOBS
from shared.jobs.models import Job
from tests.integration.batches.client import jsonl, post_file
from tests.processes import ApiProcess, free_port, wait_until

_LINES = 20_000
_SESSION = "killed-ingest"


def is_copying(database: sessionmaker[Session]) -> bool:
    with database.begin() as session:
        asked = text("SELECT count(*) FROM pg_stat_activity WHERE query = :copy AND state='active'")
        return bool(session.scalar(asked, {"copy": COPY_JOBS}))


def kept(database: sessionmaker[Session]) -> tuple[int, int]:
    """(batches, jobs) of the session."""
    with database.begin() as session:
        batches = select(func.count()).where(Batch.session_id == _SESSION)
        jobs = select(func.count()).where(Job.session_id == _SESSION)
        return session.scalar(batches) or 0, session.scalar(jobs) or 0


@pytest.mark.long
def test_killed_while_copying(
    database: sessionmaker[Session],
    environment: dict[str, str],
    api_key: str,
    tmp_path: Path,
) -> None:
    content = jsonl({"prompt": f"image {n}"} for n in range(_LINES))
    answers: list[int] = []

    def send(doomed: ApiProcess) -> None:
        try:
            answer = post_file(doomed.http, content, defaults={"model": "sim"}, session_id=_SESSION)
            answers.append(answer.status_code)
        except httpx2.TransportError:
            answers.append(0)

    with ApiProcess(environment, free_port(), api_key, tmp_path / "victim.log") as doomed:
        sender = threading.Thread(target=send, args=(doomed,))
        sender.start()
        wait_until(lambda: is_copying(database) or answers, 60, "the COPY")
        doomed.kill()
        sender.join(30)
    assert answers == [0], "the batch was accepted before the API could be killed"
    # Postgres notices the broken connection and rolls the COPY back.
    wait_until(lambda: not is_copying(database), 30, "the end of the COPY")
    assert kept(database) == (0, 0)
