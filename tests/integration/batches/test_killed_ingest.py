"""An API that is killed while it takes in a batch leaves the batch whole, or nothing of it."""

import threading
from collections.abc import Iterator
from pathlib import Path

import httpx2
import pytest
from sqlalchemy import Engine, func, select, text
from sqlalchemy.orm import Session, sessionmaker

from shared.batches.models import Batch
from shared.batches.queries import COPY_JOBS
from shared.jobs.models import Job
from tests.integration.batches.client import jsonl, post_file
from tests.processes import PATIENT, ApiProcess, free_port, wait_until

_LINES = 20_000
_SESSION = "killed-ingest"


_LOCK = 0x1463
_HALT = f"""
CREATE FUNCTION halt() RETURNS trigger LANGUAGE plpgsql AS
    'BEGIN PERFORM pg_advisory_xact_lock({_LOCK}); RETURN NEW; END';
CREATE TRIGGER halt BEFORE INSERT ON jobs FOR EACH ROW
    WHEN (NEW.session_id = '{_SESSION}' AND NEW.line = {_LINES * 3 // 4}) EXECUTE FUNCTION halt()
"""


@pytest.fixture
def halted(engine: Engine) -> Iterator[None]:
    """The COPY comes as far as three quarters, and no further."""
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.execute(text(_HALT))
        connection.execute(select(func.pg_advisory_lock(_LOCK)))
        yield
        connection.execute(select(func.pg_advisory_unlock(_LOCK)))
        connection.execute(text("DROP TRIGGER halt ON jobs; DROP FUNCTION halt"))


def is_copying(database: sessionmaker[Session], waits_for: str = "%") -> bool:
    asked = """SELECT count(*) FROM pg_stat_activity WHERE query = :copy AND state = 'active'
        AND coalesce(wait_event_type, '') LIKE :waits_for"""
    with database.begin() as session:
        found = session.scalar(text(asked), {"copy": COPY_JOBS, "waits_for": waits_for})
        return bool(found)


def kept(database: sessionmaker[Session]) -> tuple[int, int]:
    """(batches, jobs) of the session."""
    with database.begin() as session:
        batches = select(func.count()).where(Batch.session_id == _SESSION)
        jobs = select(func.count()).where(Job.session_id == _SESSION)
        return session.scalar(batches) or 0, session.scalar(jobs) or 0


@pytest.mark.long
@pytest.mark.usefixtures("halted")
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

    log = tmp_path / "victim.log"
    with ApiProcess(environment, free_port(), api_key, log, factory=PATIENT) as doomed:
        sender = threading.Thread(target=send, args=(doomed,))
        sender.start()
        wait_until(lambda: is_copying(database, "Lock") or answers, 60, "the COPY")
        doomed.kill()
        sender.join()
    assert answers == [0]
    # Postgres notices the broken connection and rolls the COPY back.
    wait_until(lambda: not is_copying(database), 30, "the end of the COPY")
    assert kept(database) == (0, 0)
