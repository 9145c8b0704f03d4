"""Reference images: over every way in and out, how they are kept, and what is refused."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx2
import pytest
from sqlalchemy import select
from sqlalchemy.orm import Session, sessionmaker

from darkroom import Client
from shared.core.ids import decode_id
from shared.jobs.models import Job
from tests.images import data_url, png
from tests.integration.api.images.conftest import assert_kept_for_its_job
from tests.integration.api.images.test_controls import upload
from tests.integration.api.images.test_images import read
from tests.integration.api.test_bad_input import BAD_FIELDS, check_problem
from tests.integration.batches.client import jsonl, post_file
from tests.processes import ApiProcess

BODY: dict[str, Any] = {"prompt": "a lamp", "model": "sim", "seed": 3, "steps": 3}
RED, BLUE = (png(colour, 96, 64) for colour in ("red", "blue"))


def submit(http: httpx2.Client, *references: dict[str, Any], **fields: Any) -> dict[str, Any]:
    body = {**BODY, "references": [*references], **fields}
    answer = http.post("/v1/jobs", json=body, headers={"Prefer": "wait=60"})
    job: dict[str, Any] = answer.json()
    assert job.get("state") == "succeeded", answer.text
    return job


def test_references_are_on_the_receipt_by_their_hashes_and_the_job_can_be_made_again(
    http: httpx2.Client,
) -> None:
    job = submit(http, {"image": data_url(RED), "scale": 0.8}, {"image": upload(http, BLUE)})
    assert [each["scale"] for each in job["references"]] == [0.8, 0.6]
    assert all(set(each) == {"image", "scale"} for each in job["references"])
    assert job["kind"] == "txt2img"
    image = job["images"][0]
    receipt = http.get(f"/v1/images/{image['id']}/receipt").json()
    hashes = [
        http.get(f"/v1/uploads/{each['image']}").json()["sha256"] for each in job["references"]
    ]
    assert receipt["references"] == [
        {"sha256": sha256, "scale": scale} for sha256, scale in zip(hashes, (0.8, 0.6), strict=True)
    ]
    assert receipt["ip_adapter"]["sha256"]
    again = http.post(f"/v1/images/{image['id']}/reproduce").json()
    assert again["verdict"] == "identical", again["reason"]
    assert again["job"]["references"] == job["references"]
    found = http.post("/v1/images/inspect", files={"file": ("a.png", read(http, job))}).json()
    assert found["job"]["references"] == job["references"]
    other = submit(http, *found["job"].pop("references"), **found["job"])
    assert other["images"][0]["sha256"] == image["sha256"]


def test_each_reference_and_its_scale_counts(http: httpx2.Client) -> None:
    red, blue = upload(http, RED), upload(http, BLUE)
    images = [
        submit(http, *references)["images"][0]["sha256"]
        for references in (
            (),
            ({"image": red},),
            ({"image": blue},),
            ({"image": red, "scale": 1.5},),
            ({"image": red}, {"image": blue}),
        )
    ]
    assert len(set(images)) == len(images)


def test_an_image_of_ours_may_be_looked_at_and_an_upscaled_one_looks_at_the_same(
    http: httpx2.Client,
) -> None:
    first = submit(http, prompt="a lamp to look at")["images"][0]["id"]
    job = submit(http, {"image": first, "scale": 1}, hires={"scale": 2})
    assert job["references"] == [{"image": first, "scale": 1.0}]
    made = job["images"][0]["id"]
    for method, kept in (("latent", job["references"]), ("lanczos", [])):
        answer = http.post(f"/v1/images/{made}/upscale", json={"scale": 1.5, "method": method})
        assert answer.status_code == 202, answer.text
        assert answer.json()["references"] == kept
    inspected = http.post("/v1/images/inspect", files={"file": ("a.png", read(http, job))}).json()
    assert inspected["job"]["references"] == job["references"]


def test_a_dry_run_keeps_nothing(
    http: httpx2.Client, api: ApiProcess, make_key: Callable[..., str]
) -> None:
    with api.client(make_key("dry")) as client:  # one whose use is not that of other tests' jobs
        red = upload(client, RED)
        references = [{"image": red}, {"image": data_url(BLUE), "scale": 2}]
        before = client.get("/v1/usage").json()
        body = {**BODY, "references": references}
        planned = client.post("/v1/jobs?dry_run=true", json=body).json()
        assert client.get("/v1/usage").json() == before
    assert planned["references"] == [
        {"image": red, "scale": 0.6},
        {"image": None, "scale": 2.0},
    ]


def test_a_reference_is_kept_for_its_job(
    lone_api: ApiProcess, database: sessionmaker[Session]
) -> None:
    http = lone_api.http
    image = upload(http, RED)
    body = {"prompt": "a lamp", "model": "paper", "references": [{"image": image}]}
    job = http.post("/v1/jobs", json=body).json()
    assert job["references"] == [{"image": image, "scale": 0.6}], job
    assert_kept_for_its_job(http, database, job, image)


def test_a_session_whose_images_a_job_looks_at_stays_until_it_has_ended(
    http: httpx2.Client,
) -> None:
    image = submit(http, session_id="looked-at")["images"][0]["id"]
    body = {"prompt": "a lamp", "model": "held", "references": [{"image": image}]}
    job = http.post("/v1/jobs", json=body).json()
    assert job.get("state") == "queued", job
    check_problem(http.delete("/v1/sessions/looked-at"), 409, "job_not_finished")
    assert http.post(f"/v1/jobs/{job['id']}/cancel").status_code == 200
    assert http.delete("/v1/sessions/looked-at").status_code == 200


RED_URL = data_url(RED)
BOMB = BAD_FIELDS["init_image is a bomb"]
BAD: dict[str, tuple[dict[str, Any], str, str]] = {
    "a model without an adapter": (
        {"model": "unserved", "references": [{"image": RED_URL}]},
        "/references",
        "references_not_supported",
    ),
    "three": ({"references": [{"image": RED_URL}] * 3}, "/references", "too_long"),
    "too much": (
        {"references": [{"image": RED_URL, "scale": 2.1}]},
        "/references/0/scale",
        "less_than_equal",
    ),
    "less than nothing": (
        {"references": [{"image": RED_URL, "scale": -0.1}]},
        "/references/0/scale",
        "greater_than_equal",
    ),
    "no image": (
        {"references": [{"image": RED_URL}, {"image": data_url(b"hello world")}]},
        "/references/1/image",
        "image_not_recognized",
    ),
    "a bomb": (
        {"references": [{"image": BOMB.fields["init_image"]}]},
        "/references/0/image",
        BOMB.code,
    ),
    "nothing known": (
        {"references": [{"image": "hello"}]},
        "/references/0/image",
        "malformed_reference",
    ),
    "no image at all": ({"references": [{"scale": 1}]}, "/references/0/image", "missing"),
    "a place of ours": (
        {"references": [{"image": RED_URL, "s3_key": "x"}]},
        "/references/0/s3_key",
        "extra_forbidden",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_what_makes_no_sense_is_refused_with_its_field(http: httpx2.Client, name: str) -> None:
    fields, pointer, code = BAD[name]
    answer = http.post("/v1/jobs", json={**BODY, **fields})
    problem = check_problem(answer, 422, "validation_failed")
    assert (problem["errors"][0]["pointer"], problem["errors"][0]["code"]) == (pointer, code)


def test_a_reference_of_another_tenant_does_not_exist(
    http: httpx2.Client, stranger: httpx2.Client
) -> None:
    body = {**BODY, "references": [{"image": upload(stranger, RED)}]}
    problem = check_problem(http.post("/v1/jobs", json=body), 404, "not_found")
    assert problem["errors"][0]["pointer"] == "/references/0/image"
    assert problem["errors"][0]["code"] == "reference_not_found"


def test_lines_of_a_batch_have_references(
    http: httpx2.Client, stranger: httpx2.Client, database: sessionmaker[Session]
) -> None:
    red, blue, alien = upload(http, RED), upload(http, BLUE), upload(stranger, RED)
    bad = [{"image": alien}, {"image": RED_URL}, {"image": red, "scale": 3}]
    lines = [{**BODY, "references": [{"image": red}, {"image": blue, "scale": 1}]}]
    lines += [{**BODY, "references": [each]} for each in bad]
    answer = post_file(http, jsonl(lines), on_error="skip")
    assert answer.status_code == 202, answer.text
    refused = answer.text + http.get(f"/v1/batches/{answer.json()['id']}/errors").text
    for code in ("reference_not_found", "malformed_reference", "less_than_equal"):
        assert code in refused
    table = f'prompt,model,references\na lamp,sim,"{red}:0.3,{blue}"\n'.encode()
    columns = post_file(http, table, "prompts.csv")
    assert columns.status_code == 202, columns.text
    kept = []
    for batch in (answer.json(), columns.json()):
        with database() as session:
            of_batch = select(Job).where(Job.batch_id == decode_id("batch", batch["id"]))
            (job,) = session.scalars(of_batch).all()
        kept.append([(each["image"], each["scale"]) for each in job.options["references"]])
        assert all(each["s3_key"] and each["sha256"] for each in job.options["references"])
    assert kept == [[(red, 0.6), (blue, 1.0)], [(red, 0.3), (blue, 0.6)]]


def test_the_client_sends_references(
    api: ApiProcess, http: httpx2.Client, api_key: str, tmp_path: Path
) -> None:
    file = tmp_path / "red.png"
    file.write_bytes(RED)
    with Client(api.url, api_key) as client:
        job = client.jobs.submit(
            "a lamp", model="sim", steps=3, references=[{"image": file, "scale": 0.9}]
        ).wait()
        (reference,) = job.references
        assert (reference.image or "").startswith("upl_")
        assert reference.scale == 0.9
        planned = client.jobs.dry_run("a lamp", model="sim", references=[{"image": file}])
        assert planned.references[0].scale == 0.6
