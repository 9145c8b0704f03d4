"""What costs the same whether a job runs or not: the dispatcher's scans, and heartbeats."""

import time
from collections.abc import Callable
from typing import TYPE_CHECKING
from uuid import UUID

from sqlalchemy import insert, text, update
from sqlalchemy.orm import Session

from shared.core.broker import job_message, publish_jobs
from shared.core.database import session_factory
from shared.jobs.models import Job
from shared.jobs.queries import claims
from tests.jobs import ensure_session, job_columns
from tests.scale.counters import cpu_of_tree
from worker.maintenance.leader import periodic_tasks
from worker.maintenance.recovery import Recovery

if TYPE_CHECKING:
    from tests.scale.run import Bed

QUEUED = 20_000
RUNNING = 4_000
HELD = 4
"""Jobs that one worker holds when it renews."""
_REPEATS = 5
_BEATS = 300


def scan_costs(bed: "Bed") -> dict[str, float]:
    """Milliseconds of a round of the dispatcher, empty and full, and of a heartbeat's CPU."""
    found = {"dispatcher_empty_ms": _round_ms(bed)}
    ids = _fill(bed)
    found["dispatcher_full_ms"] = _round_ms(bed)
    found["dispatcher_queued_jobs"] = float(QUEUED)
    found["heartbeat_cpu_ms"] = _heartbeat_ms(bed, ids)
    with bed.engine.begin() as connection:
        connection.execute(text("TRUNCATE jobs CASCADE"))
    bed.redis.flushall()
    return found


def _round_ms(bed: "Bed") -> float:
    database = session_factory(bed.engine)
    tasks = Recovery(bed.settings, database, bed.redis, bed.celery)

    def a_round() -> None:
        for task in periodic_tasks(tasks):
            task.perform()

    return _median_ms(a_round)


def _fill(bed: "Bed") -> list[UUID]:
    """So many jobs wait, in the database and in Redis, and so many run under living leases."""
    columns = [job_columns(bed.tenant, model="paced") for _ in range(QUEUED + RUNNING)]
    running = [row["id"] for row in columns[QUEUED:]]
    with Session(bed.engine) as session, session.begin():
        session.execute(ensure_session(bed.tenant, "s1"))
        session.execute(insert(Job), [{**row, "state": "queued"} for row in columns])
        lease = text("clock_timestamp() + interval '1 hour'")
        values = {"state": "running", "attempt": 1, "worker": "w", "lease_until": lease}
        session.execute(update(Job).where(Job.id.in_(running)).values(**values))
    publish_jobs(
        bed.celery, (job_message(row["id"], "paced", "interactive") for row in columns[:QUEUED])
    )
    with bed.engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.execute(text("VACUUM ANALYZE jobs"))
    return running


def _heartbeat_ms(bed: "Bed", running: list[UUID]) -> float:
    """CPU of Postgres: the time a statement takes says more about this machine's other guests."""
    held = [(job_id, 1) for job_id in running[:HELD]]
    before = cpu_of_tree(bed.postmaster)
    for _ in range(_BEATS):
        with Session(bed.engine) as session, session.begin():
            statement = claims.renew_leases(held, "w", bed.settings.lease)
            assert len(session.scalars(statement).all()) == HELD
    return 1000 * (cpu_of_tree(bed.postmaster) - before) / _BEATS


def _median_ms(function: Callable[[], None]) -> float:
    times = []
    for _ in range(_REPEATS + 1):
        begun = time.perf_counter()
        function()
        times.append(time.perf_counter() - begun)
    return 1000 * sorted(times[1:])[_REPEATS // 2]
