"""Fixtures: the real servers, once per run, and the system's own processes on top of them."""

import gc
import os
import re

# Read when torch loads OpenMP, here or in a process that a test starts: see worker.engine.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

# isort: split
from collections.abc import Callable, Generator, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

import pytest
import redis
from hypothesis import settings as hypothesis_settings
from sqlalchemy import Engine
from sqlalchemy.orm import Session, sessionmaker
from xdist.scheduler import LoadScopeScheduling

from deploy.local.postgres_server import DATABASE
from deploy.local.servers import EmbeddedServers
from deploy.tenants import create_key
from migrations.commands import upgrade
from shared.core.database import open_engine, session_factory
from shared.core.settings import Settings, get_settings
from shared.core.storage import Storage
from shared.core.tenants import RESOURCES
from tests import fork_server
from tests.processes import (
    PATIENT,
    PROJECT,
    QUICK_WORKER,
    ApiProcess,
    Process,
    Service,
    WorkerProcess,
    free_port,
    share_ports,
)
from tests.stack import Stack, free_ports

Running = TypeVar("Running", bound=Service)
MakeKey = Callable[..., str]

Process.warm = True

# An example's time says nothing of the code on a machine that does other things besides.
hypothesis_settings.register_profile("tests", deadline=None)
hypothesis_settings.load_profile("tests")

MODELS = Path(__file__).parent / "models.toml"
"""The catalogue of the tests: `sim` and `held`, simulated, and `demo`, a real pipeline."""

MIGRATED = "migrated"
"""The template of databases with the newest schema and nothing in them."""

_ON_THE_STACK = ("tests/e2e/browser/", "tests/integration/local_stack/test_stack.py")
"""What shares one stack, which takes half a minute to start. The second kills parts of it."""

EVERY_SCOPE = RESOURCES
"""But not `operator`, which reaches over tenants."""


def pytest_configure(config: pytest.Config) -> None:
    """Several processes of tests share one fork server, which the first of them starts."""
    if hasattr(config, "workerinput"):
        number = config.workerinput["workerid"].removeprefix("gw")
        share_ports(int(number), int(config.workerinput["workercount"]))
    elif getattr(config.option, "numprocesses", None):
        fork_server.start("heavy")


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Generator[None, object, object]:
    """What is imported and collected stays: the garbage collector need not look through it again.

    There are millions of such objects, for half a second in each of its full rounds.
    """
    gc.disable()
    try:
        return (yield)
    finally:
        gc.enable()
        gc.freeze()


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The engine's tests come first: they are the most that stays in one process, which would end
    long after the others, and they compute while the others wait."""
    items.sort(key=lambda item: not item.nodeid.startswith("tests/unit/engine/"))


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> LoadScopeScheduling:
    """Tests that share servers and processes stay together."""
    return _ByFixtures(config, log)


class _ByFixtures(LoadScopeScheduling):
    def _split_scope(self, nodeid: str) -> str:
        """The folder whose fixtures the test uses, or its file where there are none of a folder."""
        file = nodeid.partition("::")[0]
        if file.startswith(_ON_THE_STACK):
            return "stack"
        folder = file.rpartition("/")[0]
        return folder if (PROJECT / folder / "conftest.py").is_file() else file


@pytest.fixture(scope="session")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmbeddedServers]:
    """Postgres with the newest schema, Redis and S3, on free ports and a throw-away folder."""
    home = tmp_path_factory.mktemp("servers") / "home"
    with EmbeddedServers(home, durable=False) as running:
        upgrade(running.database_url)
        running.postgres.create_database(MIGRATED, template=DATABASE)
        yield running


@pytest.fixture(scope="session")
def environment(servers: EmbeddedServers) -> dict[str, str]:
    """The environment variables of the system's processes."""
    return {
        **servers.environment(),
        "DARKROOM_MODELS_FILE": str(MODELS),
        "DARKROOM_LOG_FORMAT": "console",
        # The usual 1.5 s are soon over on a machine with other things to do, and then the answer
        # is 503. Tests of outages set them again.
        "DARKROOM_DATABASE_TIMEOUT": "PT15S",
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
    """A pool of connections to the database."""
    opened = open_engine(settings)
    yield opened
    opened.dispose()


@pytest.fixture(scope="session")
def database(engine: Engine) -> sessionmaker[Session]:
    """Sessions on the database."""
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
def make_key(settings: Settings) -> MakeKey:
    """A new key of a tenant: `make_key(tenant, scopes=…, quotas=…)`, with every scope unless
    told."""
    url = settings.database_url.get_secret_value()

    def make(tenant: str, scopes: Sequence[str] = EVERY_SCOPE, **facts: Any) -> str:
        return create_key(url, tenant=tenant, name=tenant, scopes=scopes, **facts)

    return make


@pytest.fixture(scope="session")
def api_key(make_key: MakeKey) -> str:
    """A key of the tenant `tests` with every scope."""
    return make_key("tests")


@pytest.fixture(scope="session")
def other_api_key(make_key: MakeKey) -> str:
    """A key of another tenant."""
    return make_key("strangers")


@pytest.fixture(scope="session")
def api(
    settings: Settings,
    environment: dict[str, str],
    api_key: str,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[ApiProcess]:
    """A running API process. `api.http` is a client with the key of the tenant `tests`."""
    log = tmp_path_factory.mktemp("api") / "api.log"
    yield from for_the_session(ApiProcess(environment, free_port(), api_key, log, factory=PATIENT))


@pytest.fixture(scope="session")
def generate_worker(
    settings: Settings,
    environment: dict[str, str],
    cpu_worker: WorkerProcess,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[WorkerProcess]:
    """A running generate worker on the simulated GPU (model `sim`).

    With a dispatcher: a job that Redis was too slow to take would wait for ever without one.
    """
    log = tmp_path_factory.mktemp("worker") / "generate.log"
    yield from for_the_session(WorkerProcess(environment, ["generate", "--model", "sim"], log))


@pytest.fixture(scope="session")
def demo_worker(
    settings: Settings,
    environment: dict[str, str],
    cpu_worker: WorkerProcess,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[WorkerProcess]:
    """A running generate worker on the real demo pipeline (model `demo`), with a dispatcher."""
    log = tmp_path_factory.mktemp("worker") / "demo.log"
    yield from for_the_session(WorkerProcess(environment, ["generate", "--model", "demo"], log))


@pytest.fixture(scope="session")
def cpu_worker(
    settings: Settings, environment: dict[str, str], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[WorkerProcess]:
    """A running CPU worker: dispatcher, embeddings, webhooks."""
    log = tmp_path_factory.mktemp("worker") / "cpu.log"
    yield from for_the_session(WorkerProcess(environment, ["cpu"], log, module=QUICK_WORKER))


_ends: list[Callable[[], object]] = []


def for_the_session(process: Running) -> Iterator[Running]:
    """Run it until the end of all tests. Such processes end side by side: the first that is stopped
    tells the others."""
    with process:
        _ends.append(process.child.terminate)
        yield process
        end_all()


def end_all() -> None:
    """Tell all of them, and wait for none."""
    for end in _ends:
        end()
    _ends.clear()


@pytest.fixture(scope="session")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """A whole stack, as `make run` starts it, that has said that it is ready; with a LoRA."""
    folder, deploy = tmp_path_factory.mktemp("stack"), MODELS.parent.parent / "deploy"
    shipped = (deploy / "models.toml").read_text("utf-8")
    catalogue = re.sub(r'source = "(?=[^/])', f'source = "{deploy.as_posix()}/', shipped)
    # Its warm-up need not measure which batches pay, nor prove that they agree.
    catalogue = re.sub(r"(?m)^cpu_threads = .*", r"\g<0>\nmax_batch_size = 1", catalogue)
    source = (MODELS.parent / "loras" / "grain.safetensors").as_posix()
    lora = f'[[lora]]\nname = "grain"\nsource = "{source}"\nfamily = "sd"\n'
    models = folder / "models.toml"
    models.write_text(f'{catalogue}\n{lora}trigger_words = ["film grain"]\n', "utf-8")
    settings = {**free_ports(), "DARKROOM_MODELS_FILE": str(models)}
    run = Stack(folder / "home", folder / "output", "up", **settings)
    try:
        run.wait_for("Ctrl-C")  # its last word
        _ends.append(run.process.terminate)
        yield run
        end_all()
    finally:
        run.end()
