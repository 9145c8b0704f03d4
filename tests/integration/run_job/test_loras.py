"""LoRAs of jobs: from the request to the receipt, over every way in and out."""

import hashlib
import io
from typing import Any

import httpx2
import pytest
from PIL import Image as PILImage
from sqlalchemy import select
from sqlalchemy.orm import Session, sessionmaker

from darkroom import Client
from darkroom.types.requests import LoraOptions
from shared.core.ids import decode_id
from shared.images.receipts import read_receipt
from shared.jobs.models import Job
from tests.conftest import MODELS
from tests.integration.batches.client import jsonl, post_file, wait_ended
from tests.processes import ApiProcess, WorkerProcess, wait_until

FILE = MODELS.parent / "loras" / "grain.safetensors"
SHA256 = hashlib.sha256(FILE.read_bytes()).hexdigest()
GRAIN: LoraOptions = {"name": "grain", "scale": -0.5}
ENDED = {"succeeded", "failed", "canceled", "expired"}


def finished(api: ApiProcess, job: dict[str, Any], seconds: float = 60) -> dict[str, Any]:
    def poll() -> dict[str, Any] | None:
        found: dict[str, Any] = api.http.get(f"/v1/jobs/{job['id']}").json()
        return found if found["state"] in ENDED else None

    result: dict[str, Any] = wait_until(poll, seconds, "the end of the job")
    return result


def submit(api: ApiProcess, **fields: Any) -> dict[str, Any]:
    answer = api.http.post("/v1/jobs", json={"prompt": "a red circle", "seed": 3, **fields})
    assert answer.status_code == 202, answer.text
    job: dict[str, Any] = answer.json()
    return job


@pytest.mark.parametrize(
    ("loras", "pointer", "code"),
    [
        ([{"name": "grian"}], "/loras/0/name", "unknown_lora"),
        ([{"name": "grain"}, {"name": "other-family"}], "/loras/1/name", "lora_not_supported"),
        ([{"name": "grain"}, {"name": "grain", "scale": 2}], "/loras/1/name", "duplicate_lora"),
        ([{"name": "grain", "scale": 4.1}], "/loras/0/scale", "less_than_equal"),
        ([{"name": "grain", "scale": -4.1}], "/loras/0/scale", "greater_than_equal"),
        ([{"name": "grain"}] * 5, "/loras", "too_long"),
        ([{"scale": 1}], "/loras/0/name", "missing"),
        ([{"name": "grain", "path": "/etc/passwd"}], "/loras/0/path", "extra_forbidden"),
    ],
)
def test_bad_loras_are_refused_with_a_pointer(
    api: ApiProcess, loras: Any, pointer: str, code: str
) -> None:
    body = {"prompt": "a red circle", "model": "demo", "loras": loras}
    problem = api.http.post("/v1/jobs", json=body).json()
    assert problem["status"] == 422, problem
    found = [(error["pointer"], error["code"]) for error in problem["errors"]]
    assert (pointer, code) in found
    batch = api.http.post("/v1/batches", json={"items": [body]}).json()
    assert batch["status"] == 422
    assert any(error["code"] == code for error in batch["errors"]), batch


def test_an_unknown_name_says_what_was_meant(api: ApiProcess) -> None:
    body = {"prompt": "x", "model": "demo", "loras": [{"name": "grian"}]}
    assert "Did you mean grain?" in api.http.post("/v1/jobs", json=body).text


def test_a_real_lora_changes_the_image_and_is_in_the_receipt_and_made_again(
    api: ApiProcess, demo_worker: WorkerProcess, cpu_worker: WorkerProcess
) -> None:
    plain, changed, again = (
        finished(api, submit(api, model="demo", steps=3, width=64, height=64, loras=loras), 120)
        for loras in ([], [GRAIN], [GRAIN])
    )
    assert [job["state"] for job in (plain, changed, again)] == ["succeeded"] * 3, changed["error"]
    assert (plain["loras"], changed["loras"]) == ([], [GRAIN])
    hashes = [job["images"][0]["sha256"] for job in (plain, changed, again)]
    assert hashes[0] != hashes[1]
    image_id = changed["images"][0]["id"]
    receipt = api.http.get(f"/v1/images/{image_id}/receipt").json()
    assert receipt["loras"] == [{**GRAIN, "sha256": SHA256}]
    body = httpx2.get(changed["images"][0]["url"], timeout=60).content
    with PILImage.open(io.BytesIO(body)) as image:
        assert read_receipt(image) == receipt
        assert f'Lora hashes: "grain: {SHA256[:12]}"' in image.info["parameters"]
    inspected = api.http.post("/v1/images/inspect", files={"file": ("a.png", body)}).json()
    assert inspected["job"]["loras"] == [GRAIN]
    answer = api.http.post(f"/v1/images/{image_id}/reproduce")
    job = finished(api, answer.json()["job"], 120)
    assert job["loras"] == [GRAIN]
    result = api.http.post(f"/v1/images/{image_id}/reproduce", params={"job": job["id"]}).json()
    assert result["verdict"] == "identical", result["reason"]
    larger = finished(api, api.http.post(f"/v1/images/{image_id}/upscale", json={}).json())
    made = api.http.get(f"/v1/images/{larger['images'][0]['id']}/receipt").json()
    assert made["loras"] == receipt["loras"]  # of the image whose pixels these are
    listed = {lora["name"]: lora for lora in api.http.get("/v1/loras").json()["data"]}
    grain = listed["grain"]
    assert (grain["family"], grain["trigger_words"]) == ("sd", ["film grain"])
    assert "demo" in grain["models"]
    assert "demo" not in listed["other-family"]["models"]

    def held() -> bool:
        lora = api.http.get("/v1/loras").json()["data"][0]
        return any(w["model"] == "demo" and w["sha256"] == SHA256 for w in lora["workers"])

    wait_until(held, 30, "the worker's heartbeat")


def test_a_lora_whose_file_is_missing_fails_the_job_and_no_other(
    api: ApiProcess, generate_worker: WorkerProcess
) -> None:
    job = finished(api, submit(api, model="sim", loras=[{"name": "missing"}]))
    assert (job["state"], job["error"]["code"]) == ("failed", "lora_unavailable")
    assert len(job["attempts"]) == 1
    assert finished(api, submit(api, model="sim"))["state"] == "succeeded"


def test_lines_of_a_batch_have_loras_of_their_own(
    api: ApiProcess, generate_worker: WorkerProcess, database: sessionmaker[Session]
) -> None:
    table = b"custom_id,prompt,loras\na,one,grain:0.8\nb,two,\nc,three,grain\n"
    lines = jsonl([{"prompt": "four", "matrix": {"loras": [[], [GRAIN]]}}])
    found = []
    for content, name in ((table, "prompts.csv"), (lines, "prompts.jsonl")):
        answer = post_file(api.http, content, name, defaults={"model": "sim", "steps": 2})
        assert answer.status_code == 202, answer.text
        batch = wait_ended(api, answer.json()["id"])
        assert batch["state"] == "succeeded", batch
        with database.begin() as session:
            of_batch = Job.batch_id == decode_id("batch", batch["id"])
            rows = session.scalars(select(Job).where(of_batch).order_by(Job.id)).all()
            found.append([row.loras for row in rows])
    assert found == [
        [[{"name": "grain", "scale": 0.8}], [], [{"name": "grain", "scale": 1.0}]],
        [[], [GRAIN]],
    ]


def test_the_client_takes_and_gives_them(
    api: ApiProcess, api_key: str, generate_worker: WorkerProcess
) -> None:
    with Client(api.url, api_key) as client:
        found = client.jobs.dry_run("x", model="sim", loras=[{"name": "grain"}])
        assert [(lora.name, lora.scale) for lora in found.loras] == [("grain", 1.0)]
        job = client.jobs.submit("x", model="sim", loras=[GRAIN]).wait()
        assert [(lora.name, lora.scale) for lora in job.loras] == [("grain", -0.5)]
        assert {lora.name: lora.trigger_words for lora in client.loras.list()}["grain"] == (
            "film grain",
        )
