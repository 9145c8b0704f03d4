"""Every operation of the API with another tenant's ids: they are ids of nothing.

The walk is over the OpenAPI document. A new operation whose path takes an id that is not known
here, or that takes a body and is not in `WITHOUT_PATH_IDS`, fails until somebody has thought of it.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import httpx2
import pytest
from sqlalchemy import select
from sqlalchemy.orm import Session as SqlSession
from sqlalchemy.orm import sessionmaker

from api.app import create_app
from shared.core.ids import encode_id, new_id
from shared.core.keys import new_key
from shared.core.settings import Settings
from shared.core.tenants import Tenant
from shared.jobs.queries.loras import insert_lora
from tests.conftest import MakeKey
from tests.images import png
from tests.processes import ApiProcess, WorkerProcess, wait_until

JOB = {"prompt": "a red circle", "model": "sim", "width": 64, "height": 64, "steps": 2}

PUBLIC = {
    *("health.live", "health.ready", "root", "problems.get"),
    *("models.list", "openai.models", "openai.model"),
    *("a1111.models", "a1111.samplers", "a1111.schedulers"),
}
"""The same for everybody."""

OF_THE_OPERATOR = {
    *("workers.list", "workers.get", "workers.drain", "workers.resume"),
    "queues.list",
}
"""Nothing of any one tenant's: a tenant's key is refused, whatever its scopes; see test_workers."""

WITHOUT_PATH_IDS = {
    "jobs.submit": "init_image; see below",
    "uploads.create": "names nothing",
    "loras.create": "names nothing; see run_job/test_lora_uploads",
    "images.inspect": "a file; see below",
    "webhook_endpoints.create": "names nothing",
    "webhook_secret.rotate": "the tenant's own secret",
    "keys.create": "a tenant; see test_keys",
    "batches.create": "upload_id, and init_image in lines; see below",
    "batches.files.create": "names nothing",
    "search.like": "image_id; see below",
    "openai.generations": "init_image; see below",
    "openai.edits": "images; see below",
    "a1111.txt2img": "names nothing",
    "a1111.img2img": "init_images; see below",
    "a1111.set_options": "of the key that asks; see test_a1111",
    "a1111.interrupt": "of the key that asks; see test_a1111",
    "a1111.skip": "of the key that asks; see test_a1111",
    "a1111.png_info": "a file that is not kept",
    "huggingface.text_to_image": "parameters may name an init_image; see test_huggingface",
}
"""Operations that change something and have no id in their path: where else could one be?"""

BODIES = {
    "webhook_endpoints.update": {"description": "mine now"},
    "batches.update": {"priority": 9},
    "images.upscale": {"scale": 2},
}
"""Valid bodies of operations with an id in their path."""

QUERIES = {
    "webhook_endpoints.redeliver": {"since": "2026-01-01T00:00:00Z"},
    "search.query": {"q": "a red circle"},
    "prompts.recommendations": {"q": "a red circle"},
}
"""What an operation needs to be asked, or to be asked something of interest."""


@dataclass
class Victim:
    """A tenant with one of everything. `ids` go by the name of the path parameter."""

    http: httpx2.Client
    ids: dict[str, str]
    secrets: set[str] = field(default_factory=set)
    """Other things of theirs that nobody else may see."""
    image_url: str = ""
    image: bytes = b""
    key: str = ""


@pytest.fixture(scope="module")
def victim(
    api: ApiProcess,
    make_key: MakeKey,
    generate_worker: WorkerProcess,
    cpu_worker: WorkerProcess,
    database: sessionmaker[SqlSession],
) -> Iterator[Victim]:
    """Made over HTTP like anybody's."""
    key = make_key("victim")
    with database.begin() as session:
        tenant = session.scalars(select(Tenant.id).where(Tenant.name == "victim")).one()
        session.execute(
            insert_lora(
                {
                    "tenant_id": tenant,
                    "name": "victims-lora",
                    "family": "sd",
                    "trigger_words": ["victims words"],
                    "bytes": 1,
                    "sha256": "0" * 64,
                    "s3_key": "_loras/nothing",
                }
            )
        )
    with api.client(key) as http:
        yield _furnish(http, key)


def _furnish(http: httpx2.Client, key: str) -> Victim:
    def post(path: str, **body: Any) -> dict[str, Any]:
        answer = http.post(path, **body)
        answer.raise_for_status()
        made: dict[str, Any] = answer.json()
        return made

    endpoint = post("/v1/webhook-endpoints", json={"url": "http://127.0.0.1:9/hook"})
    done = post("/v1/jobs", json={**JOB, "session_id": "victims"})
    waiting = {**JOB, "model": "demo", "session_id": "victims"}
    batch = post("/v1/batches", json={"items": ["a blue square"], "defaults": {"model": "demo"}})
    file = {"file": ("lines.jsonl", b'{"prompt": "x"}\n')}
    kept = post("/v1/batches/files", files=file)
    upload = post("/v1/uploads", files={"file": ("a.png", png())})
    delivery = post(f"/v1/webhook-endpoints/{endpoint['id']}/test")
    extra = post("/v1/keys", json={"name": "extra", "scopes": ["jobs"]})
    secret = http.get("/v1/webhook-secret").json()
    finished = wait_until(
        lambda: job if (job := http.get(f"/v1/jobs/{done['id']}").json())["images"] else None,
        60,
        "the victim's image",
    )
    (image,) = finished["images"]
    content = http.get(f"/v1/images/{image['id']}/content?proxy=1").content
    submitted = http.post("/v1/jobs", json=waiting, headers={"Idempotency-Key": "victims"}).json()
    ids = {
        "job_id": submitted["id"],
        "image_id": image["id"],
        "upload_id": upload["id"],
        "endpoint_id": endpoint["id"],
        "delivery_id": delivery["id"],
        "batch_id": batch["id"],
        "file_id": kept["id"],
        "key_id": extra["id"],
        "session_id": "victims",
        "lora_name": "victims-lora",
        "job": done["id"],
    }
    secrets = {endpoint["secret"], *_texts(secret)} - {"v1"}
    return Victim(http, ids, secrets, image["url"], content, key)


def _texts(value: Any) -> set[str]:
    """The long texts in an answer: secrets and ids, not words."""
    if isinstance(value, dict):
        return {text for item in value.values() for text in _texts(item)}
    if isinstance(value, list):
        return {text for item in value for text in _texts(item)}
    return {value} if isinstance(value, str) and len(value) > 30 else set()


@pytest.fixture(scope="module")
def intruder(api: ApiProcess, make_key: MakeKey, victim: Victim) -> Iterator[httpx2.Client]:
    """A client of another tenant with every scope that a tenant can have."""
    with api.client(make_key("intruder")) as http:
        yield http


@dataclass(frozen=True)
class Operation:
    """One entry of the OpenAPI document."""

    id: str
    method: str
    path: str
    path_ids: tuple[str, ...]
    queries: tuple[str, ...]
    has_body: bool


def operations() -> list[Operation]:
    """All of them, of the application as its users get it."""
    settings = Settings(
        environment="local", database_url="postgresql://a@b/c", redis_url="redis://d",
        models_file="tests/models.toml",
    )  # fmt: skip
    return [
        Operation(
            id=entry["operationId"],
            method=method.upper(),
            path=path,
            path_ids=tuple(p["name"] for p in entry.get("parameters", []) if p["in"] == "path"),
            queries=tuple(p["name"] for p in entry.get("parameters", []) if p["in"] == "query"),
            has_body="requestBody" in entry,
        )
        for path, methods in create_app(settings).openapi()["paths"].items()
        for method, entry in methods.items()
    ]


OPERATIONS = operations()
TENANTS = [op for op in OPERATIONS if op.id not in PUBLIC | OF_THE_OPERATOR]
WITH_IDS = [op for op in TENANTS if op.path_ids]
LISTS = [op for op in TENANTS if not op.path_ids and op.method == "GET"]
OTHERS = [op for op in OPERATIONS if not op.path_ids and op.method != "GET"]


def attempt(http: httpx2.Client, op: Operation, ids: dict[str, str]) -> httpx2.Response:
    """The operation with these ids in its path."""
    path = op.path.format(**{name: ids[name] for name in op.path_ids})
    body = {"json": BODIES[op.id]} if op.has_body else {}
    query = QUERIES.get(op.id, {})
    return ask(http, op.method, path, params=query, follow_redirects=False, **body)


def ask(http: httpx2.Client, method: str, path: str, **request: Any) -> httpx2.Response:
    """A client's patience: 503 says that it is to try again."""
    answers: list[httpx2.Response] = []

    def answered() -> bool:
        answers.append(http.request(method, path, **request))
        return answers[-1].status_code != 503

    wait_until(answered, 90, "an answer")
    return answers[-1]


def of_nothing(known: dict[str, str]) -> dict[str, str]:
    """Ids of the same kinds that nobody has."""
    unused = encode_id("job", new_id()).partition("_")[2]
    made = {name: f"{known[name].partition('_')[0]}_{unused}" for name in known}
    return {**made, "key_id": new_key().id, "session_id": "nobodys"}


def verdict(answer: httpx2.Response) -> tuple[Any, ...]:
    """What the intruder learns, without what names the request itself."""
    said = answer.json()
    return (answer.status_code, said.get("code"), said.get("detail"), said.get("data"))


@pytest.mark.parametrize("op", WITH_IDS, ids=lambda op: op.id)
def test_an_id_of_another_tenant_is_an_id_of_nothing(
    op: Operation, victim: Victim, intruder: httpx2.Client
) -> None:
    unknown = set(op.path_ids) - set(victim.ids)
    assert not unknown, f"give the victim of this test a {unknown}"
    assert not op.has_body or op.id in BODIES, f"give this test a valid body of {op.id}"
    answer = attempt(intruder, op, victim.ids)
    assert answer.status_code == 404 or "session_id" in op.path_ids
    assert verdict(answer) == verdict(attempt(intruder, op, of_nothing(victim.ids)))


@pytest.mark.parametrize("op", LISTS, ids=lambda op: op.id)
def test_lists_and_searches_show_nothing_of_another_tenant(
    op: Operation, victim: Victim, intruder: httpx2.Client
) -> None:
    private = {*victim.ids.values(), *victim.secrets} - {"victims"}
    usual = QUERIES.get(op.id, {})
    ids = [name for name in op.queries if name.endswith("_id") or name == "after"]
    attempts = [{}, usual]
    attempts += [{**usual, name: value} for name in ids for value in victim.ids.values()]
    for query in attempts:
        answer = ask(intruder, "GET", op.path, params=query)
        assert answer.status_code in (200, 404, 422), answer.text
        shown = answer.text
        for asked in query.values():
            shown = shown.replace(asked, "")
        assert not [value for value in private if value in shown], (query, answer.text)


@pytest.mark.parametrize("op", LISTS, ids=lambda op: op.id)
def test_a_cursor_of_another_tenant_is_malformed(
    op: Operation, victim: Victim, intruder: httpx2.Client
) -> None:
    if not {"after", "limit"} <= set(op.queries):
        return
    query = {**QUERIES.get(op.id, {}), "limit": "1"}
    cursor = ask(victim.http, "GET", op.path, params=query).json()["next_cursor"]
    if cursor is not None:
        refused = ask(intruder, "GET", op.path, params={**query, "after": cursor})
        assert refused.json()["code"] == "malformed_cursor"


def test_every_other_operation_has_been_thought_of() -> None:
    assert {op.id for op in OTHERS} == set(WITHOUT_PATH_IDS)


@pytest.mark.parametrize("name", ["image_id", "upload_id"])
def test_an_initial_image_of_another_tenant_is_no_image(
    name: str, victim: Victim, intruder: httpx2.Client
) -> None:
    """In a body as in a path: 404, word for word as for an id that nobody has."""

    def submit(ids: dict[str, str]) -> tuple[Any, ...]:
        answer = intruder.post("/v1/jobs", json={**JOB, "init_image": ids[name]})
        return *verdict(answer), answer.json()["errors"]

    refused = submit(victim.ids)
    assert refused[:2] == (404, "not_found")
    assert refused[-1][0]["code"] == "init_image_not_found"
    assert refused == submit(of_nothing(victim.ids))


@pytest.mark.parametrize("name", ["image_id", "upload_id"])
@pytest.mark.parametrize("path", ["generations", "edits"])
def test_nor_is_it_one_in_openais_api(
    path: str, name: str, victim: Victim, intruder: httpx2.Client
) -> None:
    def submit(ids: dict[str, str]) -> tuple[Any, ...]:
        source = {"init_image" if path == "generations" else "image": ids[name]}
        body = {"prompt": "a red circle", "model": "sim", "size": "64x64", **source}
        answer = intruder.post(f"/openai/v1/images/{path}", json=body)
        return answer.status_code, answer.json()["error"]

    refused = submit(victim.ids)
    assert refused[0] == 404, refused
    assert refused == submit(of_nothing(victim.ids))


@pytest.mark.parametrize("name", ["image_id", "upload_id"])
def test_nor_in_the_web_uis(name: str, victim: Victim, intruder: httpx2.Client) -> None:
    def submit(ids: dict[str, str]) -> tuple[Any, ...]:
        body = {"prompt": "a red circle", "width": 64, "height": 64, "init_images": [ids[name]]}
        answer = intruder.post("/sdapi/v1/img2img", json=body)
        return *verdict(answer), answer.json()["errors"]

    refused = submit(victim.ids)
    assert refused[:2] == (404, "not_found")
    assert refused == submit(of_nothing(victim.ids))


@pytest.mark.parametrize("name", ["image_id", "upload_id"])
def test_in_a_line_of_a_batch_neither(name: str, victim: Victim, intruder: httpx2.Client) -> None:
    def submit(ids: dict[str, str]) -> httpx2.Response:
        items = [{**JOB, "init_image": ids[name]}]
        return intruder.post("/v1/batches", json={"items": items})

    refused, unknown = submit(victim.ids), submit(of_nothing(victim.ids))
    assert 400 <= refused.status_code < 500
    assert "init_image_not_found" in refused.text
    assert (refused.status_code, refused.json()["code"]) == (
        unknown.status_code, unknown.json()["code"],
    )  # fmt: skip


def test_a_batch_cannot_be_made_from_another_tenant_s_file(
    victim: Victim, intruder: httpx2.Client
) -> None:
    def submit(ids: dict[str, str]) -> tuple[Any, ...]:
        answer = intruder.post("/v1/batches", json={"upload_id": ids["file_id"]})
        return answer.status_code, answer.json()["code"], answer.json()["errors"]

    assert submit(victim.ids) == submit(of_nothing(victim.ids))
    assert submit(victim.ids)[0] == 404


def test_nothing_is_like_an_image_of_another_tenant(
    victim: Victim, intruder: httpx2.Client
) -> None:
    def search(ids: dict[str, str]) -> httpx2.Response:
        return intruder.post("/v1/search", json={"image_id": ids["image_id"]})

    assert search(victim.ids).status_code == 404
    assert verdict(search(victim.ids)) == verdict(search(of_nothing(victim.ids)))


def test_an_idempotency_key_of_another_tenant_replays_nothing(
    victim: Victim, intruder: httpx2.Client
) -> None:
    body = {**JOB, "model": "demo", "session_id": "victims"}
    mine = intruder.post("/v1/jobs", json=body, headers={"Idempotency-Key": "victims"})
    theirs = victim.http.post("/v1/jobs", json=body, headers={"Idempotency-Key": "victims"})
    assert (mine.status_code, theirs.json()["id"]) == (202, victim.ids["job_id"])
    assert mine.json()["id"] != victim.ids["job_id"]
    assert "Idempotency-Replayed" not in mine.headers


def test_an_image_of_another_tenant_is_not_known_by_its_bytes(
    victim: Victim, intruder: httpx2.Client
) -> None:
    """Its receipt is in the file for anybody who has it; whose it is stays unsaid."""
    said = intruder.post("/v1/images/inspect", files={"file": ("a.png", victim.image)}).json()
    assert (said["stored"], said["image"]) == (False, None)


def test_a_presigned_url_cannot_be_turned_to_another_object(
    victim: Victim, intruder: httpx2.Client
) -> None:
    upload = intruder.post("/v1/uploads", files={"file": ("a.png", png())}).json()
    own, theirs = httpx2.URL(upload["url"]), httpx2.URL(victim.image_url)
    with httpx2.Client(timeout=60, trust_env=False) as stranger:
        assert stranger.get(own).status_code == 200
        assert stranger.get(own.copy_with(path=theirs.path)).status_code == 403
        assert stranger.get(theirs.copy_with(query=b"")).status_code in (400, 403)


def test_a_job_of_another_tenant_reproduces_nothing(
    victim: Victim, intruder: httpx2.Client
) -> None:
    done = intruder.post("/v1/jobs", json=JOB, headers={"Prefer": "wait=60"}).json()
    (image,) = done["images"]
    path = f"/v1/images/{image['id']}/reproduce"
    refused = intruder.post(path, params={"job": victim.ids["job"]})
    unknown = intruder.post(path, params={"job": of_nothing(victim.ids)["job"]})
    assert refused.status_code == 404
    assert verdict(refused) == verdict(unknown)


def test_after_all_that_the_victim_has_lost_nothing(victim: Victim) -> None:
    """Runs last: what the attempts above would have changed is as it was."""
    ids, http = victim.ids, victim.http
    assert http.get(f"/v1/jobs/{ids['job_id']}").json()["cancel_requested"] is False
    assert http.get(f"/v1/batches/{ids['batch_id']}").json()["priority"] == 5
    assert http.get(f"/v1/batches/{ids['batch_id']}").json()["cancel_requested"] is False
    assert http.get(f"/v1/batches/files/{ids['file_id']}").status_code == 200
    endpoint = http.get(f"/v1/webhook-endpoints/{ids['endpoint_id']}").json()
    assert (endpoint["description"], endpoint["enabled"]) == ("", True)
    keys = {key["id"]: key for key in http.get("/v1/keys").json()["data"]}
    assert keys[ids["key_id"]]["revoked_at"] is None
    assert _texts(http.get("/v1/webhook-secret").json()) <= victim.secrets
