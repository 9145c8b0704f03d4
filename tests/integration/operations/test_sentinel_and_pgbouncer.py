"""Redis behind Sentinels, Postgres behind PgBouncer: with the real programs, where they are."""

import os
import shutil
import signal
import subprocess
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import psycopg
import pytest
import redis
from redis.sentinel import Sentinel

from deploy.local.servers import EmbeddedServers
from deploy.tenants import create_key
from shared.core.broker import INTERACTIVE, generate_queue
from shared.core.database import open_engine
from shared.core.settings import Settings, SettingsError
from tests.processes import ApiProcess, WorkerProcess, free_port, wait_until

pytestmark = pytest.mark.long

REDIS = os.environ.get("DARKROOM_REDIS_SERVER") or shutil.which("redis-server")
PGBOUNCER = shutil.which("pgbouncer", path=f"{os.environ.get('PATH', '')}:/usr/sbin")
PASSWORD = "of-redis-in-this-test"


@contextmanager
def program(command: list[str], folder: Path, answers: Callable[[], object]) -> Iterator[int]:
    """Run a server in a folder of its own; yields its pid."""
    with (folder / f"{Path(command[0]).name}.log").open("wb") as log:
        child = subprocess.Popen(command, cwd=folder, stdout=log, stderr=log)
    try:
        wait_until(answers, 20, f"{command[0]}: {folder}")
        yield child.pid
    finally:
        child.kill()
        child.wait()


def answers_ping(port: int, password: str | None = PASSWORD) -> bool:
    with redis.Redis(port=port, password=password, socket_timeout=2) as client:
        try:
            return bool(client.ping())
        except redis.RedisError:
            return False


@pytest.mark.skipif(REDIS is None, reason="no redis-server on PATH that can run as a Sentinel")
def test_jobs_survive_a_failover_by_sentinels(
    environment: dict[str, str], settings: Settings, tmp_path: Path
) -> None:
    ports = [free_port() for _ in range(2)]
    sentinels = [free_port() for _ in range(3)]
    with ExitStack() as stack:
        pids = [
            stack.enter_context(
                program(
                    [
                        *(str(REDIS), "--port", str(port), "--bind", "127.0.0.1", "--save", ""),
                        *("--requirepass", PASSWORD, "--masterauth", PASSWORD),
                        *(["--replicaof", "127.0.0.1", str(ports[0])] if port != ports[0] else []),
                    ],
                    _folder(tmp_path / str(port)),
                    lambda port=port: answers_ping(port),  # type: ignore[misc]
                )
            )
            for port in ports
        ]
        for port in sentinels:
            folder = _folder(tmp_path / str(port))
            (folder / "sentinel.conf").write_text(
                f"port {port}\nbind 127.0.0.1\nsentinel monitor pictures 127.0.0.1 {ports[0]} 2\n"
                f"sentinel auth-pass pictures {PASSWORD}\n"
                "sentinel down-after-milliseconds pictures 1000\n"
                "sentinel failover-timeout pictures 5000\n"
            )
            command = [str(REDIS), str(folder / "sentinel.conf"), "--sentinel"]
            stack.enter_context(
                program(command, folder, lambda port=port: answers_ping(port, None))  # type: ignore[misc]
            )
        watch = Sentinel([("127.0.0.1", port) for port in sentinels], socket_timeout=2)

        def know_each_other() -> bool:
            seen: list[Any] = [each.sentinel_master("pictures") for each in watch.sentinels]
            return all((one["num-other-sentinels"], one["num-slaves"]) == (2, 1) for one in seen)

        wait_until(know_each_other, 30, "the Sentinels know each other")
        hosts = ",".join(f"127.0.0.1:{port}" for port in sentinels)
        behind = environment | {
            "DARKROOM_REDIS_URL": f"sentinel://:{PASSWORD}@{hosts}/0",
            "DARKROOM_REDIS_SENTINEL_MASTER": "pictures",
        }
        key = create_key(
            settings.database_url.get_secret_value(),
            tenant="sentinel",
            name="sentinel",
            scopes=("jobs",),
        )
        start = stack.enter_context
        start(WorkerProcess(behind, ["cpu"], tmp_path / "cpu.log"))
        worker = start(WorkerProcess(behind, ["generate", "--model", "sim"], tmp_path / "log"))
        api = start(ApiProcess(behind, free_port(), key, tmp_path / "api.log"))

        assert _state(api, _submit(api)) == "succeeded"
        with redis.Redis(port=ports[0], password=PASSWORD) as master:
            for text in (b"not json", b'{"properties": {}, "headers": []}'):
                master.lpush(generate_queue("sim", INTERACTIVE), text)
        assert _state(api, _submit(api)) == "succeeded"
        log = worker.log.read_text("utf-8", "replace")
        assert log.count("unreadable_in_redis") == 2
        assert log.count("worker_ready") == 1, "the consumer was started again"
        os.kill(pids[0], signal.SIGKILL)
        during = _submit(api)  # accepted while there is no master

        def promoted() -> bool:
            try:
                return bool(watch.discover_master("pictures")[1] == ports[1])
            except redis.RedisError:  # none at the moment
                return False

        wait_until(promoted, 60, "the replica is master")
        for job in (during, _submit(api)):
            wait_until(lambda job=job: _state(api, job) == "succeeded", 90, "a job")  # type: ignore[misc]


@pytest.mark.skipif(PGBOUNCER is None, reason="no pgbouncer")
def test_the_api_works_behind_pgbouncer_in_transaction_mode(  # noqa: PLR0917
    servers: EmbeddedServers,
    environment: dict[str, str],
    settings: Settings,
    generate_worker: WorkerProcess,
    cpu_worker: WorkerProcess,
    tmp_path: Path,
) -> None:
    port = free_port()
    url = urlsplit(servers.database_url)
    folder = _folder(tmp_path / "pgbouncer")
    (folder / "pgbouncer.ini").write_text(
        "[databases]\n"
        f"* = host=127.0.0.1 port={url.port} user={url.username} password={url.password}\n"
        "[pgbouncer]\n"
        f"listen_addr = 127.0.0.1\nlisten_port = {port}\nunix_socket_dir =\n"
        "auth_type = any\nignore_startup_parameters = extra_float_digits\n"
        "pool_mode = transaction\ndefault_pool_size = 3\nmax_client_conn = 200\n"
    )
    through = servers.database_url.replace(f":{url.port}", f":{port}")
    behind = environment | {
        "DARKROOM_DATABASE_URL": through,
        "DARKROOM_DATABASE_POOLER": "true",
    }
    key = create_key(
        settings.database_url.get_secret_value(),
        tenant="pool",
        name="pool",
        scopes=("jobs", "search"),
    )

    def logs_in() -> bool:
        try:
            psycopg.connect(through, connect_timeout=2).close()
        except psycopg.Error:
            return False
        return True

    command = [str(PGBOUNCER), str(folder / "pgbouncer.ini")]
    if os.geteuid() == 0:
        command[1:1] = ["-u", "nobody"]  # it refuses to be root
    with (
        program(command, folder, logs_in),
        ApiProcess(behind, free_port(), key, tmp_path / "api.log") as api,
    ):
        # More than psycopg waits for before it prepares a statement, over few server sessions.
        jobs = [_submit(api) for _ in range(30)]
        for job in jobs:
            wait_until(lambda job=job: _state(api, job) == "succeeded", 90, "a job")  # type: ignore[misc]
        search = {"q": "an image through a pool"}
        # A CPU worker that has just begun has yet to load what makes vectors of queries.
        wait_until(lambda: api.http.get("/v1/search", params=search).is_success, 60, "the search")
        assert len(api.http.get("/v1/jobs", params={"limit": 50}).json()["data"]) == 30
        # Another tenant's rows stay out of sight, on whichever session a request comes.
        stranger = create_key(
            settings.database_url.get_secret_value(), tenant="pool-2", name="p", scopes=("jobs",)
        )
        with api.client(stranger) as http:
            assert http.get("/v1/jobs").json()["data"] == []
            assert http.get(f"/v1/jobs/{jobs[0]}").status_code == 404


def test_a_worker_refuses_a_pooler(settings: Settings) -> None:
    """Its locks belong to sessions."""
    with pytest.raises(SettingsError, match="DARKROOM_DATABASE_POOLER"):
        open_engine(settings.model_copy(update={"database_pooler": True}))


def _folder(path: Path) -> Path:
    path.mkdir()
    return path


def _submit(api: ApiProcess) -> str:
    answer = api.http.post("/v1/jobs", json={"prompt": "an image through a pool", "model": "sim"})
    assert answer.status_code == 202, answer.text
    return str(answer.json()["id"])


def _state(api: ApiProcess, job: str) -> str:
    answer = api.http.get(f"/v1/jobs/{job}", headers={"Prefer": "wait=20"})
    return str(answer.json().get("state"))
