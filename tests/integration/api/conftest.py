"""An API process that no worker serves, behind relays that can cut it off from its servers."""

import itertools
import json
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import UUID

import httpx2
import pytest
import redis
from sqlalchemy import select
from sqlalchemy.orm import Session, sessionmaker

from shared.core.broker import INTERACTIVE, generate_queue
from shared.core.ids import decode_id
from shared.core.quotas import Quotas
from shared.jobs.models import Job
from tests.conftest import for_the_session
from tests.integration.api.relay import Mode, Relay
from tests.processes import QUICK_AND_PATIENT, ApiProcess, free_port, wait_until

WithoutRedis = Callable[[], AbstractContextManager[None]]

MODEL = "paper"
WAITS_PER_KEY = 24
"""Of the lone API: a crowd beyond the usual 64 would only take its time."""


@dataclass(frozen=True)
class Relays:
    """In front of each server."""

    postgres: Relay
    redis: Relay
    s3: Relay


@pytest.fixture(scope="session")
def relays(environment: dict[str, str]) -> Iterator[Relays]:
    """Open relays to the session's servers."""
    with open_relays(environment) as opened:
        yield opened


@contextmanager
def open_relays(environment: dict[str, str]) -> Iterator[Relays]:
    """New ones."""
    made = Relays(
        Relay(environment["DARKROOM_DATABASE_URL"]),
        Relay(environment["DARKROOM_REDIS_URL"]),
        Relay(environment["DARKROOM_S3_ENDPOINT"]),
    )
    yield made
    for relay in (made.postgres, made.redis, made.s3):
        relay.close()


@pytest.fixture(scope="session")
def lone_api(
    environment: dict[str, str],
    relays: Relays,
    make_key: Callable[..., str],
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[ApiProcess]:
    """An API process of its own, with the model `paper` that nobody serves."""
    log = tmp_path_factory.mktemp("lone_api") / "api.log"
    key, limit = make_key("lone"), {"DARKROOM_MAX_WAITS_PER_KEY": str(WAITS_PER_KEY)}
    process = start_alone(environment, relays, key, log, factory=QUICK_AND_PATIENT, **limit)
    yield from for_the_session(process)


def start_alone(
    environment: dict[str, str], relays: Relays, key: str, log: Path, *, factory: str, **more: str
) -> ApiProcess:
    """Such a process, with more variables; to be entered."""
    own = {
        **environment,
        "DARKROOM_DATABASE_URL": relays.postgres.url,
        "DARKROOM_REDIS_URL": relays.redis.url,
        "DARKROOM_S3_ENDPOINT": relays.s3.url,
        "DARKROOM_LORA_UPLOADS": "true",
        "DARKROOM_MODELS_FILE": str(Path(__file__).with_name("models.toml")),
        **more,
    }
    return ApiProcess(own, free_port(), key, log, factory=factory)


@pytest.fixture(scope="session")
def http(lone_api: ApiProcess) -> httpx2.Client:
    """A client of the lone API with a key of the tenant `lone`."""
    return lone_api.http


@pytest.fixture
def without_redis(
    relays: Relays, lone_api: ApiProcess, make_key: Callable[..., str]
) -> WithoutRedis:
    """Takes Redis from the lone API for a while, and waits until it is asked again.

    The API leaves a Redis that has failed alone for a second, in which no rate can be checked, and
    nobody knows which models are served.
    """

    def asks_again(counted: httpx2.Client) -> bool:
        answer = counted.post("/v1/jobs", json={"prompt": "a"})  # a dry run is not counted
        return answer.status_code == 202 and bool(answer.json()["warnings"])

    @contextmanager
    def away() -> Iterator[None]:
        with relays.redis.set_to(Mode.REFUSE):
            yield
        key = make_key("counted", quotas=Quotas(requests_per_minute=6_000))
        with lone_api.client(key) as counted:
            wait_until(lambda: asks_again(counted), 30, "Redis to be asked again")

    return away


_tenants = itertools.count(1)


@pytest.fixture
def fresh(lone_api: ApiProcess, make_key: Callable[..., str]) -> Iterator[httpx2.Client]:
    """A client of a tenant that has nothing yet."""
    with lone_api.client(make_key(f"fresh-{next(_tenants)}")) as client:
        yield client


@pytest.fixture
def stranger(lone_api: ApiProcess, make_key: Callable[..., str]) -> Iterator[httpx2.Client]:
    """A client of yet another tenant."""
    with lone_api.client(make_key("strangers-of-lone")) as client:
        yield client


@pytest.fixture
def submit(http: httpx2.Client) -> Callable[..., dict[str, Any]]:
    """Submit a job that nobody will run."""

    def post(client: httpx2.Client | None = None, **fields: Any) -> dict[str, Any]:
        answer = (client or http).post("/v1/jobs", json={"prompt": "a red circle", **fields})
        assert answer.status_code == 202, answer.text
        job: dict[str, Any] = answer.json()
        return job

    return post


@pytest.fixture
def row_of(database: sessionmaker[Session]) -> Callable[[str], Job]:
    """A job's row in the database."""

    def find(job_id: str) -> Job:
        with database() as session:
            return session.get_one(Job, decode_id("job", job_id))

    return find


@pytest.fixture
def accepted(
    database: sessionmaker[Session], redis_client: "redis.Redis"
) -> Callable[[], tuple[int, int]]:
    """How many jobs of the model are on record, and how many messages are of no such job.

    Not how many messages there are: another test's dispatcher may publish what Redis lost.
    """

    def count() -> tuple[int, int]:
        with database() as session:
            known = set(session.scalars(select(Job.id).where(Job.model == MODEL)))
        sent = {UUID(task) for task in queued_tasks(redis_client)}
        return len(known), len(sent - known)

    return count


def queued_tasks(redis_client: "redis.Redis") -> list[str]:
    """The ids of the messages that wait for a worker of the model."""
    messages: Any = redis_client.lrange(generate_queue(MODEL, INTERACTIVE), 0, -1)
    return [json.loads(message)["headers"]["id"] for message in messages]


def uuid_of(job: dict[str, Any]) -> UUID:
    """The database's id of a job from the wire."""
    return decode_id("job", job["id"])
