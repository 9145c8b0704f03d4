"""The system under trial: real servers, the API, workers behind proxies, and what clients saw."""

import random
import socket
import time
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self
from uuid import UUID

import redis
from sqlalchemy import Engine, create_engine, func, select
from sqlalchemy.orm import Session, sessionmaker

from deploy.local.servers import EmbeddedServers
from deploy.tenants import create_key
from migrations.commands import upgrade
from shared.core.database import session_factory
from shared.core.ids import decode_id
from shared.core.settings import Settings, with_driver
from shared.core.storage import Storage
from shared.jobs.models import Job, JobAttempt
from shared.jobs.state import TERMINAL_STATES
from tests.chaos.deliveries import Deliveries
from tests.chaos.fleet import Fleet
from tests.chaos.proxy import Proxy
from tests.processes import ApiProcess, free_port, settings_of, slowness, wait_until

MODELS = Path(__file__).with_name("models.toml")
SHORT_LEASES = {"DARKROOM_LEASE": "PT3S", "DARKROOM_HEARTBEAT": "PT1S"}
"""For trials that wait for leases hundreds of times; all else is as in production."""
STEADY = {"DARKROOM_LEASE": "PT30S", "DARKROOM_HEARTBEAT": "PT2S"}
"""For a worker whose lease is not to run out, though a busy machine may hold it up for seconds."""


@dataclass
class History:
    """What clients saw: every 202, and the first terminal state of each job."""

    accepted: dict[UUID, dict[str, Any]] = field(default_factory=dict)
    ended: dict[UUID, tuple[str, int]] = field(default_factory=dict)


class System:
    """A context manager. `behind` names the servers that workers reach through a proxy.

    `listen` makes the proxies' sockets.
    """

    def __init__(
        self,
        folder: Path,
        *,
        behind: Iterable[str] = (),
        listen: Callable[[], socket.socket] | None = None,
        environment: dict[str, str] | None = None,
        api: bool = True,
    ) -> None:
        self._folder = folder
        self._behind = tuple(behind)
        self._listen = listen
        self._extra = {"DARKROOM_MODELS_FILE": str(MODELS), "DARKROOM_LOG_FORMAT": "console"}
        self._extra |= environment or {}
        self._with_api = api
        self._stack = ExitStack()
        self.proxies: dict[str, Proxy] = {}
        self.history = History()

    servers: EmbeddedServers
    settings: Settings
    engine: Engine
    database: sessionmaker[Session]
    redis: "redis.Redis"
    storage: Storage
    api: ApiProcess
    fleet: Fleet
    deliveries: Deliveries
    environment: dict[str, str]

    def __enter__(self) -> Self:
        try:
            self._start()
        except BaseException:
            self._stack.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def _start(self) -> None:
        enter = self._stack.enter_context
        self._folder.mkdir(parents=True, exist_ok=True)
        self.servers = enter(EmbeddedServers(self._folder / "home", durable=False))
        url = with_driver(self.servers.database_url)
        upgrade(url)
        self.environment = {**self.servers.environment(), **self._extra}
        self.settings = settings_of(self.environment)
        self.engine = create_engine(url, pool_size=20, pool_pre_ping=True)
        self._stack.callback(self.engine.dispose)
        self.database = session_factory(self.engine)
        self.redis = redis.Redis.from_url(self.servers.redis_url)
        self._stack.callback(self.redis.close)
        self.storage = Storage(self.settings)
        self._stack.callback(self.storage.close)
        self.deliveries = enter(Deliveries(self.database, "chaos"))
        self.fleet = enter(Fleet(self._folder / "logs", self._proxied()))
        if self._with_api:
            key = create_key(url, tenant="chaos", name="chaos", scopes=("jobs",))
            log = self._folder / "api.log"
            self.api = enter(ApiProcess(self.environment, free_port(), key, log))

    def _proxied(self) -> dict[str, str]:
        changed = dict(self.environment)
        targets = {
            "postgres": ("DARKROOM_DATABASE_URL", self.servers.postgres.port),
            "redis": ("DARKROOM_REDIS_URL", self.servers.redis.port),
            "s3": ("DARKROOM_S3_ENDPOINT", self.servers.s3.port),
        }
        for name in self._behind:
            variable, port = targets[name]
            proxy = self._stack.enter_context(Proxy(port, self._listen and self._listen()))
            self.proxies[name] = proxy
            old, new = f"127.0.0.1:{port}", f"{proxy.host}:{proxy.port}"
            assert old in changed[variable]
            changed[variable] = changed[variable].replace(old, new)
        return changed

    # --- Clients ------------------------------------------------------------------------------

    def submit(self, count: int = 1, **fields: Any) -> list[UUID]:
        """POST jobs; what is answered with 202 is a promise that the checker holds us to."""
        made = []
        for _ in range(count):
            body = {"prompt": f"image {random.random()}", "seed": random.randrange(2**40)}
            made.append(self.note(self._post({**body, **fields})))
        return made

    def _post(self, body: dict[str, Any]) -> dict[str, Any]:
        """As a client that obeys Retry-After, so that it sees a 503 only where it lasts."""
        deadline = time.monotonic() + 30 * slowness()
        while True:
            answer = self.api.http.post("/v1/jobs", json=body)
            if answer.status_code == 202:
                accepted: dict[str, Any] = answer.json()
                return accepted
            assert answer.status_code == 503, answer.text
            assert time.monotonic() < deadline, answer.text
            time.sleep(float(answer.headers["retry-after"]))

    def note(self, job: dict[str, Any]) -> UUID:
        """Remember an accepted job."""
        job_id = decode_id("job", job["id"])
        self.history.accepted[job_id] = job
        return job_id

    def evict(self) -> None:
        """A new trial on the same servers: hold the system only to what it accepts from now on."""
        self.history.accepted.clear()
        self.history.ended.clear()

    # --- Watching -----------------------------------------------------------------------------

    def job(self, job_id: UUID) -> Job:
        """The row now."""
        with self.database.begin() as session:
            return session.get_one(Job, job_id)

    def attempts(self, job_id: UUID) -> list[JobAttempt]:
        """Its attempts, in order."""
        statement = select(JobAttempt).where(JobAttempt.job_id == job_id)
        with self.database.begin() as session:
            return list(session.scalars(statement.order_by(JobAttempt.number)))

    def wait_running(self, job_id: UUID, attempt: int = 1, seconds: float = 60) -> None:
        """Wait until an attempt has begun."""
        wait_until(lambda: self.job(job_id).attempt >= attempt, seconds, f"attempt {attempt}")

    def watch_ends(self) -> int:
        """Note jobs that have ended since the last look; returns how many have not."""
        with self.database.begin() as session:
            rows = session.execute(
                select(Job.id, Job.state, Job.sequence).where(Job.state.in_(TERMINAL_STATES))
            ).all()
        for job_id, state, sequence in rows:
            if job_id in self.history.accepted:
                self.history.ended.setdefault(job_id, (state, sequence))
        return len(self.history.accepted) - len(self.history.ended)

    def wait_all(self, seconds: float) -> int:
        """Wait until all accepted jobs have ended, or the time is over; returns how many are left.

        The checker reports those; a trial does not fail here.
        """
        began = time.monotonic()
        while (left := self.watch_ends()) and time.monotonic() - began < seconds * slowness():
            time.sleep(0.1)
        return left

    def count(self, state: str) -> int:
        """Jobs in a state."""
        with self.database.begin() as session:
            statement = select(func.count()).where(Job.state == state)
            return session.scalars(statement).one()
