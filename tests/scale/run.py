"""One measurement: N simulated generate workers against one Postgres, one Redis and one S3."""

import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import psutil
from sqlalchemy import insert, text
from sqlalchemy.orm import Session

from shared.core.broker import job_message, publish_jobs
from shared.core.logging import configure_logging
from shared.jobs.models import Job
from tests.bench.system import System
from tests.chaos.fleet import Fleet, Worker
from tests.jobs import ensure_session, job_columns
from tests.processes import wait_until
from tests.scale.counters import LockWatch, Meter, Reading
from worker.maintenance.leader import Dispatcher, periodic_tasks
from worker.maintenance.recovery import Recovery

_THREADS = 2
"""Jobs in hand per worker: one on its way to S3 and Postgres while the device makes the next."""
_SETTLE_SECONDS = 3.0


@dataclass(frozen=True)
class Regime:
    """What kind of GPU is simulated."""

    name: str
    catalog: Path
    jobs_per_second: float
    """Of one worker, at most; so many jobs are prepared."""


REGIMES = {
    "paced": Regime("paced", Path(__file__).with_name("models.toml"), 1.0),
    "null": Regime("null", Path(__file__).with_name("models-null.toml"), 250.0),
}


@dataclass(frozen=True)
class Measured:
    """One row of the table; what is per job is the window's total divided by its jobs."""

    regime: str
    workers: int
    seconds: float
    jobs: int
    jobs_per_second: float
    claims_per_second: float
    missed_claims_per_job: float
    waiting_for_locks: float
    """Backends, on average, that waited for a row or an advisory lock."""
    waiting_inside: float
    """Backends, on average, that waited for a latch inside Postgres (`LWLock`)."""
    connections: int
    active_connections: int
    transactions_per_job: float
    rollbacks_per_job: float
    wal_kilobytes_per_job: float
    postgres_cpu_ms_per_job: float
    redis_cpu_ms_per_job: float
    redis_commands_per_job: float
    s3_cpu_ms_per_job: float
    worker_cpu_ms_per_job: float
    machine_busy: float
    """Share of this machine's CPU that servers and workers used."""

    def row(self) -> dict[str, Any]:
        """For JSON."""
        return {
            name: round(value, 4) if isinstance(value, float) else value
            for name, value in asdict(self).items()
        }


class Bed:
    """Servers, a dispatcher, and the means to start workers."""

    def __init__(self, system: System) -> None:
        self._folder = system.folder
        self._servers = system.servers
        self._environment = {**system.environment, "DARKROOM_WORKER_THREADS": str(_THREADS)}
        catalog = REGIMES["paced"].catalog
        self.settings = system.settings.model_copy(update={"models_file": catalog})
        # What the dispatcher says of killed workers belongs to no table.
        configure_logging(self.settings.model_copy(update={"log_level": "error"}))
        self.engine, self.redis, self.celery = system.engine, system.redis, system.celery
        self.tenant = system.tenant
        tasks = periodic_tasks(Recovery(self.settings, system.database, self.redis, self.celery))
        dispatcher = Dispatcher(self.settings, self.engine, tasks)
        dispatcher.start()
        system.stack.callback(dispatcher.close)

    def measure(self, regime: Regime, workers: int, seconds: float) -> Measured:
        """Start the workers, give them work, look at a window of it, end them."""
        self._clear()
        folder = self._folder / f"{regime.name}-{workers}"
        environment = {**self._environment, "DARKROOM_MODELS_FILE": str(regime.catalog)}
        with Fleet(folder, environment) as fleet:
            started = [fleet.start(f"gpu-{n}", wait=False) for n in range(workers)]
            for worker in started:
                worker.wait_ready()
            count = int(workers * regime.jobs_per_second * (seconds + 3 * _SETTLE_SECONDS)) + 20
            self._accept(regime.name, min(count, int(500 * (seconds + 3 * _SETTLE_SECONDS))))
            servers = {server.name: server.pid for server in self._servers.all}
            pids = [each.child.pid for each in started]
            meter = Meter(self.engine, self.redis, servers, pids)
            time.sleep(_SETTLE_SECONDS)  # a measurement, not a wait: the first jobs start together
            missed = _missed_claims(started)
            with LockWatch(self.engine) as locks:
                before = meter.read()
                time.sleep(seconds)
                after = meter.read()
            missed = _missed_claims(started) - missed
        assert after.succeeded < self._accepted, "the work ran out within the window"
        return _measured(regime.name, workers, window=(before, after), locks=locks, missed=missed)

    def _accept(self, model: str, count: int) -> None:
        with Session(self.engine) as session, session.begin():
            session.execute(ensure_session(self.tenant, "s1"))
            # Prompts of their own: a shared one is a row that every commit would wait for.
            columns = [
                job_columns(self.tenant, model=model, steps=4, prompt=f"image number {n}")
                for n in range(count)
            ]
            session.execute(insert(Job), [{**row, "state": "queued"} for row in columns])
        publish_jobs(self.celery, (job_message(row["id"], model, "interactive") for row in columns))
        self._accepted = count

    def _clear(self) -> None:
        with self.engine.begin() as connection:
            connection.execute(text("TRUNCATE jobs, images, prompts, sessions CASCADE"))
        self.redis.flushall()
        with self.engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
            connection.execute(text("VACUUM ANALYZE"))
        wait_until(lambda: self._connections() <= 12, 20, "the end of former workers' sessions")

    def _connections(self) -> int:
        with self.engine.connect() as connection:
            statement = (
                "SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'client backend'"
            )
            return int(connection.scalar(text(statement)) or 0)

    @property
    def postmaster(self) -> int:
        """Process id of the Postgres server."""
        return self._servers.postgres.pid


def _measured(
    regime: str,
    workers: int,
    *,
    window: tuple[Reading, Reading],
    locks: LockWatch,
    missed: int,
) -> Measured:
    before, after = window
    seconds = after.at - before.at
    jobs = after.succeeded - before.succeeded
    per = 1 / max(1, jobs)
    cpu = {
        name: getattr(after, name) - getattr(before, name)
        for name in ("postgres_cpu", "redis_cpu", "s3_cpu", "workers_cpu")
    }
    return Measured(
        regime=regime,
        workers=workers,
        seconds=seconds,
        jobs=jobs,
        jobs_per_second=jobs / seconds,
        claims_per_second=(after.claims - before.claims) / seconds,
        missed_claims_per_job=missed * per,
        waiting_for_locks=locks.waiting("Lock"),
        waiting_inside=locks.waiting("LWLock"),
        connections=locks.connections,
        active_connections=locks.active,
        transactions_per_job=(after.transactions - before.transactions) * per,
        rollbacks_per_job=(after.rollbacks - before.rollbacks) * per,
        wal_kilobytes_per_job=(after.wal_bytes - before.wal_bytes) / 1024 * per,
        postgres_cpu_ms_per_job=1000 * cpu["postgres_cpu"] * per,
        redis_cpu_ms_per_job=1000 * cpu["redis_cpu"] * per,
        redis_commands_per_job=(after.redis_commands - before.redis_commands) * per,
        s3_cpu_ms_per_job=1000 * cpu["s3_cpu"] * per,
        worker_cpu_ms_per_job=1000 * cpu["workers_cpu"] * per,
        machine_busy=sum(cpu.values()) / seconds / (psutil.cpu_count() or 1),
    )


def _missed_claims(workers: list[Worker]) -> int:
    return sum(worker.said().count("claim_missed") for worker in workers)
