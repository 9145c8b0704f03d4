"""One tenant's data: exported whole, and deleted so that nothing is left, wherever one looks."""

import contextlib
import hashlib
import json
import zipfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path
from typing import Any, cast
from uuid import UUID

import httpx2
import pytest
import redis
from sqlalchemy import text
from sqlalchemy.orm import Session, sessionmaker

from deploy import admin, tenant_data
from deploy.tenants import create_key
from shared.core.broker import UNACKED
from shared.core.ids import Prefix, decode_id
from shared.core.settings import Settings
from shared.core.storage import Storage
from shared.core.tenants import RESOURCES
from tests.conftest import MODELS, MakeKey
from tests.images import data_url, png
from tests.processes import ApiProcess, free_port, wait_until
from tests.receiver import Receiver

pytestmark = pytest.mark.usefixtures("generate_worker", "cpu_worker")

Everywhere = Callable[[list[str]], list[str]]
_WAIT = {"Prefer": "wait=60"}


@pytest.fixture
def everywhere(
    database: sessionmaker[Session], storage: Storage, redis_client: "redis.Redis"
) -> Everywhere:
    """Where any of some texts is to be found: in a row, an object's key or a key of Redis."""
    earlier = set(storage.list_keys(""))  # What is in them never changes.

    def look(wanted: list[str]) -> list[str]:
        found = []
        with database() as session:
            tables = session.scalars(
                text("SELECT tablename FROM pg_tables WHERE schemaname = current_schema()")
            ).all()
            for table in tables:
                # bytea is shown in hexadecimal digits
                statement = text(
                    f'SELECT left(t::text, 200) FROM "{table}" AS t '  # noqa: S608
                    "WHERE EXISTS (SELECT FROM unnest(CAST(:wanted AS text[])) AS a "
                    "WHERE strpos(t::text, a) > 0)"
                )
                rows = session.scalars(statement, {"wanted": wanted})
                found += [f"{table}: {row}" for row in rows]
        for key in storage.list_keys(""):
            body = "" if key in earlier else storage.get(key).body.decode("latin-1")
            found += [f"object {key}"] if _has(key + body, wanted) else []
        for key, value in _of_redis(redis_client):
            found += [f"redis {key}"] if _has(key + value, wanted) else []
        return found

    return look


def _has(content: str, wanted: list[str]) -> bool:
    return any(one in content for one in wanted)


def _of_redis(client: "redis.Redis") -> Iterator[tuple[str, str]]:
    pipeline = client.pipeline(transaction=False)
    readers: dict[Any, Callable[[bytes], Any]] = {
        b"string": pipeline.get,
        b"list": lambda key: pipeline.lrange(key, 0, -1),
        b"hash": pipeline.hgetall,
        b"set": pipeline.smembers,
        b"zset": lambda key: pipeline.zrange(key, 0, -1),
        b"stream": pipeline.xrange,
    }
    keys = list(client.scan_iter(count=1000))
    for key in keys:
        pipeline.type(key)
    kinds = pipeline.execute()
    known = [(key, kind) for key, kind in zip(keys, kinds, strict=True) if kind in readers]
    for key, kind in known:
        readers[kind](key)
    for (key, _), value in zip(known, pipeline.execute(), strict=True):
        yield repr(key), repr(value)


def live(http: httpx2.Client, word: str) -> dict[str, list[str]]:
    """A tenant's day: jobs in every way, with a word in all texts; the ids of what it left."""
    with Receiver() as receiver:
        endpoint = http.post(
            "/v1/webhook-endpoints", json={"url": f"{receiver.url}/{word}", "description": word}
        )
        assert endpoint.status_code == 201, endpoint.text
        upload = http.post("/v1/uploads", files={"file": (f"{word}.png", png("red"))}).json()
        mask = http.post("/v1/uploads", files={"file": ("mask.png", png("white"))}).json()
        common = {
            "model": "sim",
            "session_id": word,
            "metadata": {"project": word},
            "negative_prompt": f"no {word}",
        }
        jobs = []
        for number, extra in enumerate(
            (
                {"num_images": 2, "previews": True, "webhook": {"url": f"{receiver.url}/own"}},
                {"init_image": upload["id"], "strength": 0.5},
                {"init_image": upload["id"], "mask_image": mask["id"]},
                {"references": [{"image": upload["id"], "scale": 0.5}]},
            )
        ):
            body = {**common, "prompt": f"{word} number {number}", "steps": 4, **extra}
            headers = {**_WAIT, "Idempotency-Key": f"{word}-{number}"}
            answer = http.post("/v1/jobs", json=body, headers=headers)
            assert answer.json()["state"] == "succeeded", answer.text
            jobs.append(answer.json())
        images = [image["id"] for job in jobs for image in job["images"]]
        http.put(f"/v1/images/{images[0]}/star").raise_for_status()
        again = http.post(f"/v1/images/{images[0]}/reproduce", headers=_WAIT).json()
        larger = http.post(f"/v1/images/{images[0]}/upscale", json={"scale": 2}).json()
        jobs += [again["job"], larger]
        http.delete(f"/v1/images/{images[1]}").raise_for_status()
        lines = "".join(
            json.dumps({"prompt": f"{word} in line {line}", "custom_id": f"{word}-{line}"}) + "\n"
            for line in range(3)
        )
        file = http.post("/v1/batches/files", files={"file": (f"{word}.jsonl", lines.encode())})
        assert file.status_code == 201, file.text
        batch = http.post(
            "/v1/batches",
            json={
                "upload_id": file.json()["id"],
                "session_id": word,
                "metadata": {"project": word},
                "defaults": {"model": "sim", "steps": 2},
            },
        )
        assert batch.status_code == 202, batch.text
        path = f"/v1/batches/{batch.json()['id']}"
        wait_until(lambda: http.get(path).json()["finished_at"], 60, "the end of the batch")
        wait_until(
            lambda: http.get(f"/v1/jobs/{larger['id']}").json()["finished_at"], 60, "its end"
        )
        search = {"q": f"{word} number"}
        # A CPU worker that has just begun has yet to load what makes vectors of queries.
        wait_until(lambda: http.get("/v1/search", params=search).is_success, 60, "the search")
        # The receiver has them before they are on record.
        wait_until(lambda: _delivered(http) >= 5, 60, "the webhooks")
    items = http.get(f"{path}/items").json()["data"]
    return {
        "jobs": [job["id"] for job in jobs] + [item["id"] for item in items],
        "images": images,
        "uploads": [upload["id"], mask["id"]],
        "files": [file.json()["id"]],
        "endpoints": [endpoint.json()["id"]],
        "batches": [batch.json()["id"]],
    }


def _delivered(http: httpx2.Client) -> int:
    deliveries = http.get("/v1/webhook-deliveries", params={"limit": 100}).json()["data"]
    return sum(bool(delivery["attempts"]) for delivery in deliveries)


def let_go(client: "redis.Redis", jobs: list[str]) -> None:
    """Wait until no worker has any of these jobs in hand: it tells of their end behind the commit,
    and would tell of jobs that are deleted by then."""
    rows = [str(decode_id("job", job)) for job in jobs]

    def is_in_hand() -> bool:
        return _has(repr(client.hgetall(UNACKED)), rows)

    wait_until(lambda: not is_in_hand(), 60, "the workers")


def left_of(everywhere: Everywhere, wanted: list[str]) -> list[str]:
    """Where they are still to be found once messages that speak of them had time to go."""
    with contextlib.suppress(AssertionError):
        wait_until(lambda: not everywhere(wanted), 20)
    return everywhere(wanted)


_SELDOM = (
    """INSERT INTO loras (tenant_id, name, family, trigger_words, bytes, sha256, s3_key)
       VALUES (:tenant, :word, 'sd', '{}', 1, 'x', :key)""",
    """INSERT INTO batch_reports (batch_id, errors, jsonl_zlib)
       SELECT id, 1, 'x' FROM batches WHERE tenant_id = :tenant""",
    """INSERT INTO image_vectors (image_id, tenant_id, embedding_model)
       SELECT id, tenant_id, :word FROM images WHERE tenant_id = :tenant""",
    """INSERT INTO webhook_holds (receiver, tenant_id, held_until)
       SELECT id::text, tenant_id, now() FROM webhook_endpoints WHERE tenant_id = :tenant""",
    """UPDATE jobs SET filtered = jsonb_build_array(jsonb_build_object('index', 9, 'seed', 1,
           'filter', 'none', 'reason', CAST(:word AS text), 'attempt', 1))
       WHERE tenant_id = :tenant""",
)


@pytest.fixture
def add_the_seldom(database: sessionmaker[Session], storage: Storage) -> Callable[[str, str], UUID]:
    """Gives a tenant what needs other settings, workers or receivers; the tenant's id."""

    def add(tenant: str, word: str) -> UUID:
        key = f"loras/{word}.safetensors"
        storage.put(key, word.encode(), "application/octet-stream")
        with database.begin() as session:
            named = text("SELECT id FROM tenants WHERE name = :name")
            tenant_id: UUID = session.scalars(named, {"name": tenant}).one()
            for statement in _SELDOM:
                session.execute(text(statement), {"tenant": tenant_id, "word": word, "key": key})
        return tenant_id

    return add


def traces(word: str, left: dict[str, list[str]]) -> list[str]:
    """The word, and each id as it is on the wire and in rows."""
    ids = [one for kind in left.values() for one in kind]
    rows = [str(decode_id(cast("Prefix", one.partition("_")[0]), one)) for one in ids]
    return [word, *ids, *rows]


@pytest.fixture
def tenant(make_key: MakeKey, api: ApiProcess) -> Iterator[Callable[[str], httpx2.Client]]:
    """Clients of tenants by their names."""
    clients = []

    def make(name: str) -> httpx2.Client:
        clients.append(api.client(make_key(name)))
        return clients[-1]

    yield make
    for client in clients:
        client.close()


@pytest.mark.long
def test_what_a_client_deletes_is_gone_everywhere(
    tenant: Callable[[str], httpx2.Client], everywhere: Everywhere, redis_client: "redis.Redis"
) -> None:
    http, word = tenant("the forgetful"), "quagga"
    left = live(http, word)
    let_go(redis_client, left["jobs"])
    assert everywhere([word])
    kept = {"Idempotency-Key": f"{word}-0"}
    deleted = http.delete(f"/v1/sessions/{word}")
    assert deleted.status_code == 200, deleted.text
    assert deleted.json()["objects_pending"] is False
    for path, ids in (
        ("/v1/uploads", left["uploads"]),
        ("/v1/batches/files", left["files"]),
        ("/v1/webhook-endpoints", left["endpoints"]),
    ):
        for one in ids:
            assert http.delete(f"{path}/{one}").status_code in (200, 204)
    # Answers about batches, without their lines, are kept for retries, for a day.
    assert left_of(everywhere, traces(word, left)) == []
    again = http.post("/v1/jobs", json={"prompt": "anew"}, headers=kept)
    assert again.status_code == 202
    assert again.json()["prompt"] == "anew"


def test_a_tenant_is_exported_and_deleted(
    *,
    tenant: Callable[[str], httpx2.Client],
    everywhere: Everywhere,
    add_the_seldom: Callable[[str, str], UUID],
    redis_client: "redis.Redis",
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    word, other = "thylacine", "solenodon"
    http, others = tenant("the leaving"), tenant("the staying")
    with ThreadPoolExecutor(2) as pool:
        left, theirs = pool.map(live, (http, others), (word, other))
    let_go(redis_client, left["jobs"])
    tenant_id = str(add_the_seldom("the leaving", word))

    def command(*arguments: str) -> int:
        return admin.main(["--json", *arguments])

    target = tmp_path / "leaving.zip"
    assert command("export", "--tenant", "the leaving", "--to", str(target)) == 0
    told = json.loads(capsys.readouterr().out)
    assert target.stat().st_mode & 0o077 == 0
    with zipfile.ZipFile(target) as archive:
        assert archive.testzip() is None
        rows = {
            name.removeprefix("rows/").removesuffix(".jsonl"): [
                json.loads(line) for line in archive.read(name).decode().splitlines()
            ]
            for name in archive.namelist()
            if name.startswith("rows/")
        }
        objects = {
            name.removeprefix("objects/"): archive.read(name)
            for name in archive.namelist()
            if name.startswith("objects/")
        }
        whole = json.dumps(rows)
    assert {name for name, some in rows.items() if some} == {
        *("tenants", "api_keys", "sessions", "prompts", "images", "deleted_images", "uploads"),
        *("jobs", "job_attempts", "device_time", "idempotency_keys", "batches", "batch_files"),
        *("webhook_endpoints", "webhook_events", "webhook_deliveries", "webhook_attempts"),
        *("loras", "batch_reports", "image_vectors", "webhook_holds"),
    }
    assert told["rows"] == {name: len(some) for name, some in rows.items()}
    assert all(f"{word} number" in whole or one in whole for one in left["jobs"])
    for image in rows["images"]:
        assert hashlib.sha256(objects[image["s3_key"]]).hexdigest() == image["sha256"]
        assert image["thumbnail_s3_key"] in objects
    for kind in ("uploads", "batch_files"):
        assert all(row["s3_key"] in objects for row in rows[kind])
    assert (told["objects"], told["missing_objects"]) == (len(objects), 0)
    assert other not in whole
    assert "secret" not in json.dumps(rows["api_keys"])
    assert "webhook_secrets" not in rows
    assert command("export", "--tenant", "the leaving", "--to", str(target)) == 1
    assert command("export", "--tenant", "nobody", "--to", str(tmp_path / "x.zip")) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["leaving.zip"]
    capsys.readouterr()

    # One job waits for ever, another has just been submitted.
    waiting = http.post("/v1/jobs", json={"prompt": word, "model": "held"})
    assert waiting.status_code == 202
    assert http.post("/v1/jobs", json={"prompt": word}).status_code == 202
    assert command("tenants", "delete", "the leaving", "--yes-delete-everything") == 0
    assert json.loads(capsys.readouterr().out)["jobs"] >= len(left["jobs"]) + 2
    key_ids = [row["id"] for row in rows["api_keys"]]
    gone = [*traces(word, left), tenant_id, *key_ids, waiting.json()["id"]]
    assert left_of(everywhere, gone) == []
    assert http.get("/v1/jobs").status_code == 401
    assert command("tenants", "delete", "the leaving", "--yes-delete-everything") == 1
    # Nobody else has lost anything.
    for one in theirs["images"][:1] + theirs["images"][2:]:
        assert others.get(f"/v1/images/{one}/content?proxy=true").status_code == 200
    assert everywhere([other])


def _locked_out(database: sessionmaker[Session]) -> bool:
    """Whether anybody waits for another."""
    with database() as session:
        waiting = "SELECT 1 FROM pg_locks WHERE NOT granted"
        return session.execute(text(waiting)).first() is not None


def test_a_request_that_ends_late_leaves_nothing(
    *,
    settings: Settings,
    tenant: Callable[[str], httpx2.Client],
    everywhere: Everywhere,
    database: sessionmaker[Session],
    storage: Storage,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Its rows come between the last job's end and the deletion: a job that waits, an upload."""
    http = tenant("the late")
    made = http.post("/v1/jobs", json={"prompt": "first", "model": "held"})
    assert made.status_code == 202, made.text
    http.post("/v1/uploads", files={"file": ("a.png", png("red"))}).raise_for_status()
    storage.put("uploads/late", b"late", "image/png")
    monkeypatch.setattr(tenant_data, "_KEYS_END_WITHIN", timedelta(0))
    change = "jsonb_build_object('id', gen_random_uuid(), 's3_key', 'uploads/late')"
    rows = "FROM tenants t JOIN {0} r ON r.tenant_id = t.id WHERE t.name = 'the late'"
    copies = "INSERT INTO {0} SELECT (jsonb_populate_record(r, " + change + ")).* " + rows
    with ThreadPoolExecutor(1) as pool:
        with database.begin() as late:
            for table in ("jobs", "uploads"):
                late.execute(text(copies.format(table)))
            going = pool.submit(
                tenant_data.delete_tenant, settings, "the late", timedelta(seconds=60)
            )
            wait_until(lambda: going.done() or _locked_out(database), 60, "the deletion to wait")
        told = going.result(60)
    assert told["jobs"] == 2
    assert everywhere(["the late", "uploads/late", made.json()["id"]]) == []


@pytest.mark.long
def test_nobody_is_waited_for_for_ever(
    settings: Settings,
    tenant: Callable[[str], httpx2.Client],
    database: sessionmaker[Session],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    tenant("the held")
    monkeypatch.setattr(tenant_data, "_KEYS_END_WITHIN", timedelta(0))
    with database.begin() as session:
        session.execute(text("SELECT 1 FROM tenants WHERE name = 'the held' FOR KEY SHARE"))
        with pytest.raises(tenant_data.DeletionTimedOut):
            tenant_data.delete_tenant(settings, "the held", timedelta(0))
    tenant_data.delete_tenant(settings, "the held", timedelta(0))


def test_a_repeat_waits_for_keys_that_have_just_ended(
    settings: Settings,
    tenant: Callable[[str], httpx2.Client],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    tenant("the repeated")
    waits: list[float] = []
    monkeypatch.setattr("deploy.tenant_data.time.sleep", waits.append)
    monkeypatch.setattr(tenant_data, "_KEYS_END_WITHIN", timedelta(hours=1))

    def fail(*_: object) -> None:
        raise tenant_data.DeletionTimedOut

    with monkeypatch.context() as patch:
        patch.setattr("shared.jobs.queries.client_requests.cancel_tenant", fail)
        with pytest.raises(tenant_data.DeletionTimedOut):
            tenant_data.delete_tenant(settings, "the repeated", timedelta(0))
    tenant_data.delete_tenant(settings, "the repeated", timedelta(0))
    assert len(waits) == 2
    assert min(waits) > 3000


@pytest.fixture(scope="module")
def patient(
    environment: dict[str, str], api_key: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[ApiProcess]:
    """An API that takes LoRAs, and waits for what another transaction holds."""
    more = {"DARKROOM_LORA_UPLOADS": "true", "DARKROOM_DATABASE_TIMEOUT": "PT30S"}
    log = tmp_path_factory.mktemp("patient") / "api.log"
    with ApiProcess({**environment, **more}, free_port(), api_key, log) as api:
        yield api


@pytest.mark.parametrize(
    ("path", "file"),
    [
        ("/v1/loras", (MODELS.parent / "loras" / "grain.safetensors").read_bytes()),
        ("/v1/uploads", png("red")),
        ("/v1/batches/files", b'{"prompt": "x"}'),
        ("/v1/jobs", png("red")),
    ],
)
def test_what_comes_as_its_tenant_goes_leaves_no_object(
    *,
    path: str,
    file: bytes,
    settings: Settings,
    patient: ApiProcess,
    database: sessionmaker[Session],
    storage: Storage,
) -> None:
    key = create_key(
        settings.database_url.get_secret_value(), tenant="the gone", name="k", scopes=RESOURCES
    )
    with patient.client(key) as http:
        before = set(storage.list_keys(""))
        if path == "/v1/jobs":
            image = data_url(file)
            parts: dict[str, Any] = {"json": {"prompt": "x", "init_image": image, "model": "sim"}}
        else:
            parts = {"files": {"file": ("a", file)}, "data": {"name": "a", "family": "sd"}}
        with ThreadPoolExecutor(1) as pool, database.begin() as session:
            session.execute(text("SELECT 1 FROM tenants WHERE name = 'the gone' FOR UPDATE"))
            answer = pool.submit(http.post, path, timeout=60, **parts)
            wait_until(lambda: answer.done() or _locked_out(database), 60, "the insertion")
            session.execute(text("DELETE FROM tenants WHERE name = 'the gone'"))
            session.commit()
            assert answer.result(60).status_code >= 400
        # Others' objects may go meanwhile.
        wait_until(lambda: set(storage.list_keys("")) <= before, 20, "the object's end")
