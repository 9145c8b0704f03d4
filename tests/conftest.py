"""Fixtures: the real servers, once per run, and the system's own processes on top of them."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import redis
from sqlalchemy import Engine
from sqlalchemy.orm import Session, sessionmaker

from deploy.local.servers import EmbeddedServers
from deploy.tenants import create_key
from migrations.commands import upgrade
from shared.core.database import open_engine, session_factory
from shared.core.settings import Settings, get_settings
from shared.core.storage import Storage
from shared.core.tenants import RESOURCES
from tests.processes import ApiProcess, WorkerProcess, free_port

MODELS = Path(__file__).parent / "models.toml"
"""The catalogue of the tests: `sim` and `held`, simulated, and `demo`, a real pipeline."""

EVERY_SCOPE = RESOURCES
"""But not `operator`, which reaches over tenants."""


@pytest.fixture(scope="session")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmbeddedServers]:
    """Postgres with the newest schema, Redis and S3, on free ports and a throw-away folder."""
    home = tmp_path_factory.mktemp("servers") / "home"
    with EmbeddedServers(home, durable=False) as running:
        upgrade(running.database_url)
        yield running


@pytest.fixture(scope="session")
def environment(servers: EmbeddedServers) -> dict[str, str]:
    """The environment variables of the system's processes."""
    return {
        **servers.environment(),
        "DARKROOM_MODELS_FILE": str(MODELS),
        "DARKROOM_LOG_FORMAT": "console",
    }


@pytest.fixture(scope="session")
def settings(environment: dict[str, str]) -> Iterator[Settings]:
    """The settings of the processes under test; also those of this one."""
    before = {name: os.environ.get(name) for name in environment}
    os.environ.update(environment)
    get_settings.cache_clear()
    yield get_settings()
    for name, value in before.items():
        if value is None:
            os.environ.pop(name)
        else:
            os.environ[name] = value
    get_settings.cache_clear()


@pytest.fixture(scope="session")
def engine(settings: Settings) -> Iterator[Engine]:
    """A pool of connections to the ledger."""
    opened = open_engine(settings)
    yield opened
    opened.dispose()


@pytest.fixture(scope="session")
def database(engine: Engine) -> sessionmaker[Session]:
    """Sessions on the ledger."""
    return session_factory(engine)


@pytest.fixture(scope="session")
def redis_client(settings: Settings) -> Iterator["redis.Redis"]:
    """A client of the broker."""
    client = redis.Redis.from_url(settings.redis_url.get_secret_value())
    yield client
    client.close()


@pytest.fixture(scope="session")
def storage(settings: Settings) -> Iterator[Storage]:
    """The bucket."""
    opened = Storage(settings)
    yield opened
    opened.close()


@pytest.fixture(scope="session")
def api_key(settings: Settings) -> str:
    """A key of the tenant `tests` with every scope."""
    url = settings.database_url.get_secret_value()
    return create_key(url, tenant="tests", name="tests", scopes=EVERY_SCOPE)


@pytest.fixture(scope="session")
def other_api_key(settings: Settings) -> str:
    """A key of another tenant."""
    url = settings.database_url.get_secret_value()
    return create_key(url, tenant="strangers", name="strangers", scopes=EVERY_SCOPE)


@pytest.fixture(scope="session")
def api(
    settings: Settings,
    environment: dict[str, str],
    api_key: str,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[ApiProcess]:
    """A running API process. `api.http` is a client with the key of the tenant `tests`."""
    log = tmp_path_factory.mktemp("api") / "api.log"
    with ApiProcess(environment, free_port(), api_key, log) as process:
        yield process


@pytest.fixture(scope="session")
def generate_worker(
    settings: Settings, environment: dict[str, str], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[WorkerProcess]:
    """A running generate worker on the simulated GPU (model `sim`)."""
    log = tmp_path_factory.mktemp("worker") / "generate.log"
    with WorkerProcess(environment, ["generate", "--model", "sim"], log) as process:
        yield process


@pytest.fixture(scope="session")
def demo_worker(
    settings: Settings, environment: dict[str, str], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[WorkerProcess]:
    """A running generate worker on the real demo pipeline (model `demo`)."""
    log = tmp_path_factory.mktemp("worker") / "demo.log"
    with WorkerProcess(environment, ["generate", "--model", "demo"], log) as process:
        yield process


@pytest.fixture(scope="session")
def cpu_worker(
    settings: Settings, environment: dict[str, str], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[WorkerProcess]:
    """A running CPU worker: dispatcher, embeddings, webhooks."""
    log = tmp_path_factory.mktemp("worker") / "cpu.log"
    with WorkerProcess(environment, ["cpu"], log) as process:
        yield process
