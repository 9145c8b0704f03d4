"""Submission: defaults, seeds, normalisation, the database and the queue, and replay."""

import threading
import time
import unicodedata
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx2
import pytest
import redis

from shared.core.broker import WORKERS, worker_key
from shared.core.ids import decode_id
from shared.core.storage import Storage
from shared.core.worker_registry import ModelStatus, WorkerHeartbeat, WorkerState
from shared.jobs.models import Job
from tests.images import data_url, encode
from tests.integration.api.conftest import MODEL, queued_tasks
from tests.integration.api.test_bad_input import PNG, check_problem
from tests.processes import ApiProcess, wait_until
from tests.unit.images.hostile import make_image

Submit = Callable[..., dict[str, Any]]

EVERY_FIELD = {
    *("id", "kind", "state", "sequence", "model", "session_id", "batch_id", "prompt"),
    *("negative_prompt", "width", "height", "steps", "guidance_scale", "scheduler", "strength"),
    *(
        "init_image",
        "resize_mode",
        "output_format",
        "seeds",
        "images",
        "progress",
        "queue_position",
        "eta",
    ),
    *("cancel_requested", "attempts", "error", "warnings", "metrics", "metadata", "created_at"),
    *("started_at", "finished_at", "links"),
}


def test_a_prompt_is_enough(http: httpx2.Client, row_of: Callable[[str], Job]) -> None:
    answer = http.post("/v1/jobs", json={"prompt": "a red circle"})
    assert answer.status_code == 202
    job = answer.json()
    assert answer.headers["location"] == job["links"]["self"]
    assert int(answer.headers["retry-after"]) >= 1
    assert set(job) >= EVERY_FIELD
    assert (job["kind"], job["state"], job["model"]) == ("txt2img", "queued", MODEL)
    assert (job["width"], job["height"], job["steps"]) == (128, 64, 8)
    assert (job["guidance_scale"], job["scheduler"]) == (6.5, "euler")
    assert (job["session_id"], job["output_format"], job["strength"]) == ("default", "png", None)
    assert len(job["seeds"]) == 1
    assert 0 <= job["seeds"][0] < 2**53
    assert job["images"] == job["attempts"] == []
    assert job["queue_position"] >= 0
    created = datetime.fromisoformat(job["created_at"])
    assert job["created_at"].endswith("Z")
    assert abs(datetime.now(UTC) - created) < timedelta(minutes=5)
    assert row_of(job["id"]).seeds == job["seeds"]
    assert http.get(job["links"]["self"]).json() == job


def test_the_queue_carries_the_id(submit: Submit, redis_client: "redis.Redis") -> None:
    job = submit()
    assert str(decode_id("job", job["id"])) in queued_tasks(redis_client)


def test_a_model_that_nobody_serves_is_said(submit: Submit) -> None:
    assert [warning["code"] for warning in submit()["warnings"]] == ["model_not_served"]


def test_seeds_are_known_at_once(submit: Submit) -> None:
    assert submit(seed=7, num_images=3)["seeds"] == [7, 8, 9]
    assert submit(seeds=[5, 3, 5])["seeds"] == [5, 3, 5]
    drawn = submit(num_images=4)["seeds"]
    assert drawn == list(range(drawn[0], drawn[0] + 4))
    assert submit()["seeds"] != submit()["seeds"]
    largest = 2**53 - 1
    assert submit(seed=largest - 1, num_images=2)["seeds"] == [largest - 1, largest]


def test_prompts_are_kept_in_nfc(submit: Submit) -> None:
    composed = "Käse über Ångström"
    job = submit(prompt=unicodedata.normalize("NFD", composed))
    assert job["prompt"] == composed


def test_length_is_counted_in_characters(submit: Submit) -> None:
    assert len(submit(prompt="🦊" * 4000)["prompt"]) == 4000


def test_everything_can_be_said(submit: Submit, row_of: Callable[[str], Job]) -> None:
    asked = {
        "prompt": "a\nb",
        "negative_prompt": "",
        "width": 64,
        "height": 192,
        "steps": 50,
        "guidance_scale": 0,
        "scheduler": "ddim",
        "model": MODEL,
        "session_id": "A.b-c_1",
        "output_format": "webp",
        "metadata": {"order": "7 ✓"},
        "seeds": [1],
    }
    job = submit(**asked, previews=True, start_within=30, finish_within=90.5)
    assert asked.items() <= job.items()
    row = row_of(job["id"])
    assert row.previews
    assert row.start_deadline is not None
    assert row.finish_deadline is not None
    apart = (row.finish_deadline - row.start_deadline).total_seconds()
    assert apart == pytest.approx(60.5, abs=1)
    assert row.cost == 64 * 192 * 50


def test_an_upload_starts_image_to_image(
    http: httpx2.Client, submit: Submit, row_of: Callable[[str], Job]
) -> None:
    created = http.post("/v1/uploads", files={"file": ("a.png", PNG, "text/html")})
    assert created.status_code == 201
    upload = created.json()
    assert (upload["width"], upload["height"]) == (96, 96)
    assert http.get(created.headers["location"]).json()["sha256"] == upload["sha256"]
    job = submit(init_image=upload["id"])
    assert (job["kind"], job["strength"], job["init_image"]) == ("img2img", 0.8, upload["id"])
    init_image = row_of(job["id"]).init_image
    assert init_image is not None
    assert init_image["sha256"] == upload["sha256"]


@pytest.mark.parametrize(
    ("asked", "run"),
    [
        ({}, 6),
        ({"steps": 10, "strength": 0.25}, 2),
        ({"scheduler": "lcm", "steps": 2, "strength": 0.4}, 2),
        ({"scheduler": "lcm", "steps": 1}, 1),
    ],
)
def test_the_cost_of_image_to_image_counts_the_steps_that_run(
    submit: Submit, row_of: Callable[[str], Job], asked: dict[str, Any], run: int
) -> None:
    job = submit(init_image=data_url(PNG), width=128, height=64, num_images=2, **asked)
    assert row_of(job["id"]).cost == 128 * 64 * run * 2


WIDE = encode(make_image(size=(256, 128)), "PNG")


@pytest.mark.parametrize(
    ("asked", "size"),
    [
        ({}, (128, 64)),
        ({"init_image": data_url(PNG)}, (96, 96)),
        ({"width": 192}, (192, 96)),
        ({"height": 128}, (256, 128)),
        ({"height": 192}, (256, 192)),
        ({"width": 64, "height": 64, "resize_mode": "fit"}, (64, 64)),
    ],
)
def test_an_initial_image_keeps_its_shape_unless_a_size_is_given(
    http: httpx2.Client, submit: Submit, asked: dict[str, Any], size: tuple[int, int]
) -> None:
    fields = {"init_image": data_url(WIDE), **asked}
    job = submit(**fields)
    assert (job["width"], job["height"]) == size
    assert job["resize_mode"] == asked.get("resize_mode", "fill")
    body = {"prompt": "a", **fields}
    found = http.post("/v1/jobs", params={"dry_run": 1}, json=body).json()
    assert (found["width"], found["height"], found["resize_mode"]) == (*size, job["resize_mode"])
    assert found["cost"] == size[0] * size[1] * 6
    assert "size_unknown" not in {warning["code"] for warning in found["warnings"]}


def test_the_steps_that_a_strength_leaves_are_said(http: httpx2.Client, submit: Submit) -> None:
    """As diffusers counts them: 0.29 * 100 is 28.999…, and 28 steps run."""
    fields = {"init_image": data_url(WIDE), "steps": 100, "strength": 0.29}
    job = submit(**fields)
    assert (job["steps"], job["executed_steps"]) == (100, 28)
    assert http.get(job["links"]["self"]).json()["executed_steps"] == 28
    found = http.post("/v1/jobs", params={"dry_run": 1}, json={"prompt": "a", **fields}).json()
    assert (found["steps"], found["executed_steps"]) == (100, 28)
    assert submit()["executed_steps"] == submit()["steps"]


def test_steps_that_depend_on_an_unknown_family_are_null_until_a_worker_says_it(
    http: httpx2.Client,
    submit: Submit,
    row_of: Callable[[str], Job],
    redis_client: "redis.Redis",
) -> None:
    fields = {"model": "remote", "init_image": data_url(WIDE), "steps": 100}
    job = submit(**fields, strength=0.29)
    assert (job["steps"], job["executed_steps"]) == (100, None)
    assert row_of(job["id"]).cost == job["width"] * job["height"] * 29, "the most that may run"
    dry = {"prompt": "a", **fields, "strength": 0.29}
    found = http.post("/v1/jobs", params={"dry_run": 1}, json=dry).json()
    assert found["executed_steps"] is None
    assert submit(**fields, strength=0.5)["executed_steps"] == 50, "the same in every family"
    assert submit(model="remote", steps=100)["executed_steps"] == 100
    address = job["links"]["self"]
    etag = http.get(address).headers["etag"]
    worker = WorkerHeartbeat(
        name="says-its-family",
        state=WorkerState.READY,
        models=(ModelStatus(name="remote", family="sd3"),),
        started_at=datetime.now(UTC),
    )
    key = worker_key(worker.name)
    redis_client.set(key, worker.model_dump_json(), ex=60)
    redis_client.zadd(WORKERS, {worker.name: time.time()})
    try:
        known = wait_until(lambda: http.get(address).json()["executed_steps"], what="the family")
        assert known == 29
    finally:
        redis_client.delete(key)
        redis_client.zrem(WORKERS, worker.name)
    assert http.get(address).headers["etag"] != etag
    [listed] = [one for one in http.get("/v1/jobs").json()["data"] if one["id"] == job["id"]]
    assert listed["executed_steps"] == 29


def test_an_upload_keeps_its_shape_too(http: httpx2.Client, submit: Submit) -> None:
    upload = http.post("/v1/uploads", files={"file": ("a.png", WIDE)}).json()["id"]
    for body in ({"init_image": upload}, {"init_image": upload, "width": 128}):
        assert (submit(**body)["width"], submit(**body)["height"]) == (128, 64)


def test_a_dry_run_says_that_a_url_decides_the_size(http: httpx2.Client) -> None:
    body: dict[str, Any] = {"prompt": "a", "init_image": "https://example.com/a.png"}
    found = http.post("/v1/jobs", params={"dry_run": 1}, json=body).json()
    assert "size_unknown" in {warning["code"] for warning in found["warnings"]}
    body |= {"width": 64, "height": 64}
    found = http.post("/v1/jobs", params={"dry_run": 1}, json=body).json()
    assert "size_unknown" not in {warning["code"] for warning in found["warnings"]}


def test_a_whole_number_is_an_integer_however_it_is_written(http: httpx2.Client) -> None:
    body = (
        b'{"prompt": "a", "seed": 7.0, "width": 128.0, "height": 64.0, "steps": 4.0,'
        b'"num_images": 2e0}'
    )
    headers = {"Content-Type": "application/json"}
    job = http.post("/v1/jobs", content=body, headers=headers).json()
    assert (job["seeds"], job["width"], job["height"], job["steps"]) == ([7, 8], 128, 64, 4)
    body = b'{"prompt": "a", "seeds": [1.0, 2.5]}'
    problem = http.post("/v1/jobs", content=body, headers=headers).json()
    assert [error["pointer"] for error in problem["errors"]] == ["/seeds/1"]
    quotas = b'{"name": "k", "scopes": ["jobs:read"], "quotas": {"max_pixels": 65536.0}}'
    made = http.post("/v1/keys", content=quotas, headers=headers)
    assert made.json()["quotas"]["max_pixels"] == 65536
    lines = (
        b'{"items": [{"prompt": "a", "matrix": {"seed": [1.0, 2]}, "width": 64.0}],"priority": 3.0}'
    )
    batch = http.post("/v1/batches?dry_run=1", content=lines, headers=headers).json()
    assert (batch["jobs"], batch["invalid_lines"]) == (2, 0)


def test_text_to_image_has_no_resize_mode(submit: Submit) -> None:
    assert submit()["resize_mode"] is None


def test_a_data_url_is_kept_as_an_upload(
    http: httpx2.Client, submit: Submit, row_of: Callable[[str], Job], storage: Storage
) -> None:
    job = submit(init_image=data_url(PNG), strength=1)
    init_image = row_of(job["id"]).init_image
    assert init_image is not None
    assert storage.get(init_image["s3_key"]).content_type == "image/png"
    assert http.get(f"/v1/uploads/{job['init_image']}").json()["sha256"] == init_image["sha256"]


def test_a_url_is_refused_for_now(http: httpx2.Client) -> None:
    answer = http.post("/v1/jobs", json={"prompt": "a", "init_image": "https://example.com/a.png"})
    problem = check_problem(answer, 422, "validation_failed")
    assert problem["errors"][0]["pointer"] == "/init_image"


def replayable(client: httpx2.Client, key: str, **fields: Any) -> httpx2.Response:
    headers = {"Idempotency-Key": key}
    return client.post("/v1/jobs", json={"prompt": "a", **fields}, headers=headers)


def test_the_same_key_and_body_replay_the_answer(fresh: httpx2.Client) -> None:
    first = replayable(fresh, "k1", metadata={"a": "1", "b": "2"})
    fresh.post(first.json()["links"]["cancel"])
    second = replayable(fresh, "k1", metadata={"b": "2", "a": "1"})
    assert "idempotency-replayed" not in first.headers
    assert second.headers["idempotency-replayed"] == "true"
    assert second.content == first.content
    assert (second.status_code, second.headers["location"]) == (202, first.headers["location"])
    assert len(fresh.get("/v1/jobs").json()["data"]) == 1


def test_the_same_key_with_another_body_is_refused(fresh: httpx2.Client) -> None:
    replayable(fresh, "k2")
    check_problem(replayable(fresh, "k2", steps=3), 422, "idempotency_key_reuse")
    check_problem(replayable(fresh, "k2", init_image=data_url(PNG)), 422, "idempotency_key_reuse")


def test_an_image_inside_a_replayed_request_is_stored_once(fresh: httpx2.Client) -> None:
    first = replayable(fresh, "k3", init_image=data_url(PNG))
    assert replayable(fresh, "k3", init_image=data_url(PNG)).content == first.content


def test_keys_of_tenants_do_not_meet(fresh: httpx2.Client, stranger: httpx2.Client) -> None:
    first, second = (replayable(client, "shared-key") for client in (fresh, stranger))
    assert first.json()["id"] != second.json()["id"]


def test_a_refused_request_leaves_its_key_free(fresh: httpx2.Client) -> None:
    check_problem(replayable(fresh, "k4", steps=0), 422, "validation_failed")
    assert replayable(fresh, "k4").status_code == 202


def test_fifty_racing_retries_make_one_job(lone_api: ApiProcess, fresh: httpx2.Client) -> None:
    barrier = threading.Barrier(50)
    key = fresh.headers["authorization"].removeprefix("Bearer ")

    def race(_: int) -> httpx2.Response:
        with lone_api.client(key) as client:
            barrier.wait()
            return replayable(client, "race")

    with ThreadPoolExecutor(50) as threads:
        answers = list(threads.map(race, range(50)))
    assert {answer.status_code for answer in answers} == {202}
    assert len({answer.content for answer in answers}) == 1
    replays = Counter(answer.headers.get("idempotency-replayed") for answer in answers)
    assert replays == {None: 1, "true": 49}
    assert len(fresh.get("/v1/jobs").json()["data"]) == 1
