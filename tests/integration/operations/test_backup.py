"""Back up a running system, destroy it, restore into empty servers: images, hashes, search."""

import hashlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import redis
from prometheus_client import REGISTRY
from sqlalchemy import create_engine, text

from deploy import backup as program
from deploy.backup import BackupFailed, key_of, path_of, restore, save, verify
from deploy.bootstrap import ensure_bucket
from deploy.local.servers import EmbeddedServers
from deploy.tenants import create_key
from shared.core.broker import INTERACTIVE, generate_queue
from shared.core.settings import Settings
from shared.core.storage import Storage
from shared.core.tenants import RESOURCES
from tests.conftest import MIGRATED, MODELS
from tests.processes import PROJECT, ApiProcess, WorkerProcess, free_port, wait_until


class Place:
    """A database, a Redis database and a bucket of their own on the tests' servers."""

    def __init__(
        self, servers: EmbeddedServers, name: str, redis_database: int, template: str = "template1"
    ) -> None:
        self.name = name
        self._servers = servers
        self.environment: dict[str, Any] = {
            **servers.environment(),
            "DARKROOM_DATABASE_URL": servers.postgres.create_database(name, template),
            "DARKROOM_REDIS_URL": servers.redis_url.removesuffix("/0") + f"/{redis_database}",
            "DARKROOM_S3_BUCKET": name.replace("_", "-"),
            "DARKROOM_MODELS_FILE": str(MODELS),
            "DARKROOM_LOG_FORMAT": "console",
        }
        self.settings = Settings(
            **{
                key.removeprefix("DARKROOM_").lower(): value
                for key, value in self.environment.items()
            }
        )
        self.url = self.settings.database_url.get_secret_value()

    def destroy(self) -> None:
        """No table, no object."""
        self._servers.postgres.drop_database(self.name)
        storage = Storage(self.settings)
        storage.delete(storage.list_keys(""))
        storage.close()


@pytest.fixture
def source(servers: EmbeddedServers) -> Iterator[Place]:
    """A migrated place with an empty bucket."""
    place = Place(servers, "backup_source", 1, MIGRATED)
    ensure_bucket(place.settings)
    yield place
    servers.postgres.drop_database(place.name)


@pytest.fixture
def target(servers: EmbeddedServers) -> Iterator[Place]:
    """Nothing at all but empty servers."""
    place = Place(servers, "backup_target", 2)
    yield place
    servers.postgres.drop_database(place.name)


@contextmanager
def running(place: Place, key: str, folder: Path, *roles: str) -> Iterator[ApiProcess]:
    """The API and workers of these roles."""
    folder.mkdir()
    with ExitStack() as stack:
        for role in roles:
            stack.enter_context(WorkerProcess(place.environment, [role], folder / f"{role}.log"))
        api = ApiProcess(place.environment, free_port(), key, folder / "api.log")
        yield stack.enter_context(api)


def search(api: ApiProcess, query: str) -> list[dict[str, Any]]:
    """The hits, once the worker that embeds has loaded its model, and embedded this prompt."""

    def found() -> Any:
        answer = api.http.get("/v1/search", params={"q": query})
        hits = answer.json()["data"] if answer.status_code == 200 else []
        return hits if hits and hits[0]["prompt"] == query else None

    hits: list[dict[str, Any]] = wait_until(found, 60, "the search")
    return hits


def submit(api: ApiProcess, prompt: str, *, wait: int = 60) -> dict[str, Any]:
    """A job that must succeed, or only be accepted."""
    body = {"prompt": prompt, "session_id": "kept", "seed": 5}
    answer = api.http.post(
        "/v1/jobs", json=body, headers={"Prefer": f"wait={wait}"} if wait else {}
    )
    assert answer.status_code in (200, 202), answer.text
    job: dict[str, Any] = answer.json()
    assert not wait or job["state"] == "succeeded", job
    return job


@pytest.mark.long
def test_what_was_saved_comes_back(source: Place, target: Place, tmp_path: Path) -> None:
    key = create_key(source.url, tenant="archive", name="archive", scopes=RESOURCES)
    backup = tmp_path / "backup"
    prompts = ("a red lighthouse", "two green boats")
    with running(source, key, tmp_path / "before", "generate") as api:
        images = [submit(api, prompt)["images"][0] for prompt in prompts]
        # It goes on working while it is backed up: more images come in the middle.
        busy = threading.Thread(target=lambda: [submit(api, f"boat {n}", wait=0) for n in range(8)])
        busy.start()
        manifest = save(source.settings, backup)
        busy.join()
    assert manifest["objects"] >= 2 * len(images)
    source.destroy()

    done = subprocess.run(
        [sys.executable, "-m", "deploy.backup", "restore", str(backup)],
        env={**os.environ, **target.environment},
        cwd=PROJECT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == manifest
    found = verify(target.settings, read=True)
    assert found["missing"] == found["different"] == []
    assert found["read"] >= len(images)

    with running(
        target, key, tmp_path / "after", "generate", "cpu"
    ) as api:  # the old key still opens
        for prompt, image in zip(prompts, images, strict=True):
            shown = api.http.get(f"/v1/images/{image['id']}").json()
            body = api.client(None).get(shown["url"]).content
            assert hashlib.sha256(body).hexdigest() == image["sha256"]
            hits = search(api, prompt)
            assert hits[0]["prompt"] == prompt
            assert hits[0]["image"]["id"] == image["id"]
        # Row-level security came along; and what waited waits in Redis again, by the database.
        waiting = submit(api, "a new one", wait=0)
        assert waiting["state"] == "queued"
        queue = generate_queue("sim", INTERACTIVE)
        client = redis.Redis.from_url(target.settings.redis_url.get_secret_value())
        wait_until(lambda: client.llen(queue) >= _unfinished(target.url), 60, "the queue")
        client.close()


@pytest.mark.parametrize("key", ["s/job/1/00.png", "../../etc/passwd", "./a", "a/../b"])
def test_no_key_leads_out_of_the_backup(key: str, tmp_path: Path) -> None:
    path = path_of(tmp_path, key)
    assert tmp_path in path.resolve().parents
    assert key_of(tmp_path, path) == key


def test_a_second_backup_copies_what_is_new(source: Place, tmp_path: Path) -> None:
    storage = Storage(source.settings)
    storage.put("s/job/1/00.png", b"first", "image/png")
    first = save(source.settings, tmp_path / "backup")
    storage.put("s/job/2/00.png", b"second", "image/png")
    second = save(source.settings, tmp_path / "backup")
    storage.close()
    assert (first["objects_new"], second["objects_new"], second["objects"]) == (1, 1, 2)


def test_earlier_dumps_are_kept_and_the_oldest_go(source: Place, tmp_path: Path) -> None:
    backup = tmp_path / "backup"
    saved = []
    for number in range(4):
        saved.append(save(source.settings, backup, keep=2))
        manifest = json.loads((backup / "manifest.json").read_text())
        manifest["begun_at"] = f"2026-11-2{number}T00:00:00+00:00"  # the second is not over yet
        (backup / "manifest.json").write_text(json.dumps(manifest))
    kept = sorted((backup / "earlier").iterdir())
    assert [folder.name[:10] for folder in kept] == ["2026-11-21", "2026-11-22"]
    for folder, manifest in zip(kept, saved[1:3], strict=True):
        dump = (folder / "database.dump").read_bytes()
        assert hashlib.sha256(dump).hexdigest() == manifest["dump_sha256"]


@pytest.mark.long
@pytest.mark.parametrize("rubbish", ["", "{", "[]", "{}", '{"begun_at": "../.."}'])
def test_a_damaged_manifest_keeps_no_later_backup_from_being_made(
    source: Place, rubbish: str, tmp_path: Path
) -> None:
    backup = tmp_path / "backup"
    save(source.settings, backup)
    (backup / "manifest.json").write_text(rubbish)
    made = save(source.settings, backup)
    assert json.loads((backup / "manifest.json").read_text()) == made
    assert len(list((backup / "earlier").iterdir())) == 1


def test_a_backup_is_made_again_and_again_until_it_is_stopped(
    source: Place, tmp_path: Path
) -> None:
    backup = tmp_path / "backup"
    with subprocess.Popen(
        [sys.executable, "-m", "deploy.backup", "save", str(backup), "--every=PT0.1S"],
        env={**os.environ, **source.environment},
        cwd=PROJECT,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        first, second = (json.loads(process.stdout.readline()) for _ in range(2))
        process.terminate()
        assert process.wait(30) == 0
    assert first["begun_at"] <= second["begun_at"]
    assert list((backup / "earlier").iterdir())


def test_a_backup_that_failed_is_made_soon(
    source: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A failure of a moment costs minutes, not a whole period."""
    last = "darkroom_backup_last_success_timestamp_seconds"
    period = timedelta(days=365)
    begun = time.time()
    seen = []

    def fail_once(*_: object) -> dict[str, Any]:
        seen.append(REGISTRY.get_sample_value(last))
        if len(seen) == 1:
            raise BackupFailed("the disk is full")
        os.kill(os.getpid(), signal.SIGTERM)  # what ends it
        return {}

    monkeypatch.setattr(program, "_SOON", timedelta(milliseconds=1))
    monkeypatch.setattr(program, "save", fail_once)
    handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        assert program._save_again(source.settings, tmp_path, 7, period) == 0
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
    assert seen == [0, 0]
    assert REGISTRY.get_sample_value(last) != 0
    every = REGISTRY.get_sample_value("darkroom_backup_period_seconds")
    assert every == period.total_seconds()
    started = REGISTRY.get_sample_value("darkroom_backup_started_timestamp_seconds")
    assert started is not None
    assert begun <= started <= time.time()


def test_a_damaged_backup_and_a_full_database_are_refused(
    source: Place, target: Place, tmp_path: Path
) -> None:
    backup = tmp_path / "backup"
    save(source.settings, backup)
    with pytest.raises(BackupFailed, match="not empty"):
        restore(source.settings, backup)
    with (backup / "database.dump").open("ab") as dump:
        dump.write(b"x")
    with pytest.raises(BackupFailed, match="not the dump"):
        restore(target.settings, backup)


def test_verify_names_what_is_missing(source: Place) -> None:
    engine = create_engine(source.url)
    with engine.begin() as connection:
        connection.execute(text("INSERT INTO tenants (id, name) VALUES (gen_random_uuid(), 'v')"))
        connection.execute(
            text(
                "INSERT INTO uploads (id, tenant_id, width, height, content_type, bytes, sha256,"
                " s3_key) SELECT gen_random_uuid(), id, 64, 64, 'image/png', 1, 'x', 'lost.png'"
                " FROM tenants"
            )
        )
    engine.dispose()
    assert verify(source.settings, read=False)["missing"] == ["lost.png"]


def _unfinished(url: str) -> int:
    engine = create_engine(url)
    try:
        with engine.connect() as connection:
            statement = text("SELECT count(*) FROM jobs WHERE finished_at IS NULL")
            return int(connection.scalar(statement) or 0)
    finally:
        engine.dispose()
