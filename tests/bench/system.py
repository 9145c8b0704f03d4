"""The whole system on its own servers, as the benchmarks use it."""

import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import UUID

import redis
from celery import Celery
from sqlalchemy import Engine, func, select
from sqlalchemy.orm import Session, sessionmaker

from deploy.local.servers import EmbeddedServers
from deploy.tenants import EVERY_SCOPE, create_key
from migrations.commands import upgrade
from shared.core import tenants
from shared.core.broker import celery_app, publish_job
from shared.core.database import open_engine, session_factory
from shared.core.quotas import Quotas
from shared.core.settings import Settings
from shared.jobs.models import Job
from tests.jobs import ensure_session, insert_job, job_columns
from tests.processes import ApiProcess, Process, WorkerProcess, free_port, settings_of, wait_until

MODELS = Path(__file__).parent / "models.toml"


@dataclass
class System:
    """Running servers and the means to add processes to them."""

    folder: Path
    servers: EmbeddedServers
    environment: dict[str, str]
    settings: Settings
    engine: Engine
    database: sessionmaker[Session]
    redis: "redis.Redis"
    celery: Celery
    key: str
    tenant: UUID
    stack: ExitStack

    def api(self, factory: str = "api.app:create_app") -> ApiProcess:
        """Start an API process."""
        log = self.folder / f"{factory.rpartition(':')[2]}.log"
        api = ApiProcess(self.environment, free_port(), self.key, log, factory=factory)
        return self.stack.enter_context(api)

    def worker(self, model: str, threads: int | None = None) -> WorkerProcess:
        """Start a generate worker."""
        environment = dict(self.environment)
        if threads:
            environment["DARKROOM_WORKER_THREADS"] = str(threads)
        worker = WorkerProcess(
            environment, ["generate", "--model", model], self.folder / f"worker-{model}.log"
        )
        return self.stack.enter_context(worker)

    def process(self, arguments: Sequence[str], ready: str) -> Process:
        """Start any other process of the project and wait for a line in its log."""
        process = Process(self.environment, arguments, self.folder / "process.log")
        process.start()
        self.stack.callback(process.stop)
        process.wait_for_log(ready)
        return process

    def key_of(self, tenant: str, quotas: Quotas | None = None) -> str:
        """A key of another tenant."""
        url = self.settings.database_url.get_secret_value()
        return create_key(url, tenant=tenant, name=tenant, scopes=EVERY_SCOPE, quotas=quotas)

    def insert_jobs(self, count: int, **fields: Any) -> list[Job]:
        """Accept jobs straight into the database, without publishing them."""
        job = {"session_id": "bench", "model": "null", "prompt": "a benchmark", "steps": 1}
        job |= {"cost": 4096, **fields}
        rows = [job_columns(self.tenant, **job, seeds=[seed]) for seed in range(count)]
        with self.database.begin() as session:
            session.execute(ensure_session(self.tenant, "bench"))
            return [session.scalars(insert_job(row)).one() for row in rows]

    def seconds_of(self, count: int, **fields: Any) -> float:
        """Accept and publish jobs; the seconds from their publication until all have succeeded."""
        jobs = self.insert_jobs(count, **fields)
        started = time.monotonic()
        for job in jobs:
            publish_job(self.celery, job.id, job.model, job.queue_class)
        return self.wait_succeeded(jobs[0].id, count) - started

    def succeeded(self) -> int:
        """How many jobs have succeeded."""
        with self.database.begin() as session:
            return session.scalar(select(func.count()).where(Job.state == "succeeded")) or 0

    def succeeded_since(self, first: UUID) -> int:
        """How many jobs from this one on have succeeded."""
        with self.database.begin() as session:
            statement = select(func.count()).where(Job.id >= first, Job.state == "succeeded")
            return session.scalar(statement) or 0

    def wait_succeeded(self, first: UUID, count: int, seconds: float = 120.0) -> float:
        """Wait until so many have; returns the monotonic time at which it was seen."""
        wait_until(lambda: self.succeeded_since(first) >= count, seconds, f"{count} jobs")
        return time.monotonic()


@contextmanager
def running_system(home: Path | None = None) -> Iterator[System]:
    """Servers with durable settings, a tenant and a key; processes are added by the caller.

    `home` keeps the data for a later run.
    """
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="darkroom-bench-")))
        servers = stack.enter_context(EmbeddedServers(home or folder / "home"))
        upgrade(servers.database_url)
        environment = {
            **servers.environment(),
            "DARKROOM_MODELS_FILE": str(MODELS),
            "DARKROOM_LOG_LEVEL": "info",
            "DARKROOM_LOG_FORMAT": "console",
        }
        settings = settings_of(environment)
        engine = open_engine(settings)
        stack.callback(engine.dispose)
        database = session_factory(engine)
        with database.begin() as session:
            tenant = session.scalars(tenants.ensure_tenant("bench")).one()
        client = redis.Redis.from_url(settings.redis_url.get_secret_value())
        stack.callback(client.close)
        yield System(
            folder=folder,
            servers=servers,
            environment=environment,
            settings=settings,
            engine=engine,
            database=database,
            redis=client,
            celery=celery_app(settings),
            key=create_key(servers.database_url, tenant="bench", name="bench", scopes=EVERY_SCOPE),
            tenant=tenant,
            stack=stack,
        )
