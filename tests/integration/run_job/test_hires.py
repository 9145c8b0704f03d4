"""Second passes and upscaled images: from the request to the receipt, over every way in and out."""

import io
import json
from collections.abc import Callable, Iterator
from typing import Any
from uuid import UUID

import httpx2
import numpy as np
import pytest
from PIL import Image as PILImage
from sqlalchemy import select
from sqlalchemy.orm import Session, sessionmaker

from darkroom import Client, ProgressMade
from deploy.tenants import create_key
from shared.core.ids import decode_id
from shared.core.quotas import Quotas
from shared.core.settings import Settings
from shared.jobs.models import Job
from tests.integration.api.test_bad_input import check_problem
from tests.integration.batches.client import jsonl, make, post_file
from tests.processes import ApiProcess, WorkerProcess

BODY = {"prompt": "a red circle", "model": "sim", "seed": 3}
HIRES = {"scale": 1.5, "strength": 0.5, "steps": 10, "upscaler": "lanczos"}
WAIT = {"Prefer": "wait=60"}


@pytest.fixture(scope="module")
def http(api: ApiProcess, generate_worker: WorkerProcess) -> httpx2.Client:
    return api.http


def done(http: httpx2.Client, **fields: Any) -> dict[str, Any]:
    made: dict[str, Any] = http.post("/v1/jobs", json={**BODY, **fields}, headers=WAIT).json()
    assert made.get("state") == "succeeded", made
    return made


def upscaled(http: httpx2.Client, image: dict[str, Any], **fields: Any) -> dict[str, Any]:
    answer = http.post(f"/v1/images/{image['id']}/upscale", json=fields)
    assert answer.status_code == 202, answer.text
    made: dict[str, Any] = http.get(answer.headers["Location"], headers=WAIT).json()
    assert made["state"] == "succeeded", made
    return made


def pixels(http: httpx2.Client, image: dict[str, Any]) -> PILImage.Image:
    path = f"/v1/images/{image['id']}/content?proxy=1"
    return PILImage.open(io.BytesIO(http.get(path).content)).convert("RGB")


def receipt_of(http: httpx2.Client, image: dict[str, Any]) -> dict[str, Any]:
    receipt: dict[str, Any] = http.get(f"/v1/images/{image['id']}/receipt").json()
    return receipt


@pytest.fixture(scope="module")
def job(http: httpx2.Client) -> dict[str, Any]:
    return done(http, hires=HIRES, num_images=2)


def test_a_job_has_its_own_size_and_images_have_the_final_one(
    http: httpx2.Client, job: dict[str, Any]
) -> None:
    assert (job["width"], job["height"], job["kind"]) == (64, 64, "txt2img")
    assert job["hires"] == {**HIRES, "width": 96, "height": 96}
    assert [(image["width"], image["height"]) for image in job["images"]] == [(96, 96)] * 2
    assert pixels(http, job["images"][0]).size == (96, 96)
    assert job["executed_steps"] == 4 + 5
    assert job["progress"] == {"step": 9, "steps": 9, "fraction": 1.0}
    assert http.get(f"/v1/jobs/{job['id']}").json()["hires"] == job["hires"]


def test_what_is_left_out_has_a_default(http: httpx2.Client) -> None:
    tried = http.post("/v1/jobs?dry_run=true", json={**BODY, "hires": {}}).json()
    defaults = {"scale": 2.0, "strength": 0.7, "steps": 4, "upscaler": "latent"}
    assert tried["hires"] == {**defaults, "width": 128, "height": 128}
    assert tried["executed_steps"] == 4 + 2
    assert tried["cost"] == 64 * 64 * 4 + 128 * 128 * 2
    assert http.post("/v1/jobs?dry_run=true", json=BODY).json()["hires"] is None


def test_the_receipt_has_both_passes_and_makes_them_again(
    http: httpx2.Client, job: dict[str, Any]
) -> None:
    image = job["images"][1]
    receipt = receipt_of(http, image)
    assert receipt["hires"] == job["hires"]
    assert (receipt["width"], receipt["executed_steps"]) == (64, 9)
    second = receipt["second_pass"]
    assert (second["executed_steps"], second["batch_size"], second["notes"]) == (5, 4, [])
    result = http.post(f"/v1/images/{image['id']}/reproduce", headers={"Prefer": "wait=60"}).json()
    assert (result["verdict"], result["max_pixel_difference"]) == ("identical", 0)
    assert result["reason"] == "Every pixel is equal, and so is everything on record."
    again = http.post(
        f"/v1/images/{result['image']['id']}/reproduce", headers={"Prefer": "wait=60"}
    ).json()
    assert again["verdict"] == "identical"


def test_the_file_says_how_to_make_it_again(http: httpx2.Client, job: dict[str, Any]) -> None:
    image = job["images"][0]
    file = http.get(f"/v1/images/{image['id']}/content?proxy=1").content
    found = http.post("/v1/images/inspect", files={"file": ("a.png", file)}).json()
    assert found["job"]["hires"] == HIRES
    again = http.post("/v1/jobs", json=found["job"], headers=WAIT).json()
    assert again["images"][0]["sha256"] == image["sha256"]


def test_progress_counts_both_passes(api: ApiProcess, http: httpx2.Client) -> None:
    with Client(api.url, api.key) as client:
        handle = client.jobs.submit(
            "a circle", model="sim", steps=100, hires={"scale": 4, "steps": 100, "strength": 1}
        )
        seen = [event for event in handle.events() if isinstance(event, ProgressMade)]
        assert handle.result()[0].width == 256
    assert {event.steps for event in seen} == {200}
    fractions = [event.job_fraction or 0.0 for event in seen]
    assert fractions == sorted(fractions)
    assert seen[-1].step == 200
    assert fractions[-1] == 1.0
    halfway = [event for event in seen if event.step <= 100]
    assert all(event.fraction <= 1 / 17 + 1e-3 for event in halfway)  # 16 times the pixels follow


@pytest.mark.parametrize(
    ("hires", "pointer", "code"),
    [
        ({"scale": 1}, "/hires/scale", "greater_than"),
        ({"scale": 4.5}, "/hires/scale", "less_than_equal"),
        ({"strength": 0}, "/hires/strength", "greater_than"),
        ({"steps": 0}, "/hires/steps", "greater_than_equal"),
        ({"steps": 101}, "/hires/steps", "steps_over_limit"),
        ({"steps": 2, "strength": 0.2}, "/hires/strength", "strength_too_low"),
        ({"upscaler": "esrgan"}, "/hires/upscaler", "literal_error"),
        ({"width": 128}, "/hires/width", "extra_forbidden"),
        (True, "/hires", "model_type"),
    ],
)
def test_bad_passes_are_refused_with_a_pointer(
    http: httpx2.Client, hires: Any, pointer: str, code: str
) -> None:
    problem = http.post("/v1/jobs", json={**BODY, "hires": hires}).json()
    assert problem["status"] == 422, problem
    assert (pointer, code) in [(each["pointer"], each["code"]) for each in problem["errors"]]


def test_the_final_size_is_limited_also_where_an_initial_image_decides_it(
    http: httpx2.Client, job: dict[str, Any]
) -> None:
    too_large = {**BODY, "width": 256, "hires": {"scale": 2.5}}
    problem = check_problem(http.post("/v1/jobs", json=too_large), 422, "validation_failed")
    assert problem["errors"][0]["pointer"] == "/hires/scale"
    assert problem["errors"][0]["code"] == "size_over_limit"
    wide = {**BODY, "height": 64, "hires": {"scale": 4}}
    large = done(http, width=512, height=64)["images"][0]["id"]
    sized = http.post("/v1/jobs", json={**wide, "init_image": large})
    assert sized.json()["errors"][0]["pointer"] == "/hires/scale"
    lines = [{**wide, "init_image": large}, {"prompt": "a", "model": "sim"}]
    refused = post_file(http, jsonl(lines)).json()
    assert [each["code"] for each in refused["errors"]] == ["size_over_limit"]
    batch = post_file(http, jsonl(lines), on_error="skip").json()
    assert batch["counts"]["total"] == 1


def test_it_may_begin_with_an_image(http: httpx2.Client, job: dict[str, Any]) -> None:
    made = done(http, init_image=job["images"][0]["id"], hires={"scale": 2}, strength=0.5)
    assert made["kind"] == "img2img"
    sides = made["width"], made["height"], made["images"][0]["width"], made["images"][0]["height"]
    assert sides[2:] == (2 * sides[0], 2 * sides[1])


def test_lines_defaults_and_matrices_may_have_it(
    api: ApiProcess, http: httpx2.Client, database: sessionmaker[Session]
) -> None:
    lines = [
        {"prompt": "a"},
        {"prompt": "b", "hires": None},
        {"prompt": "c", "matrix": {"hires": [{"scale": 2}, {"scale": 3}]}},
    ]
    batch = make(api, lines, defaults={"model": "sim", "hires": HIRES})
    with database() as session:
        statement = select(Job).where(Job.batch_id == decode_id("batch", batch["id"]))
        rows = list(session.scalars(statement.order_by(Job.id)))
    widths = [row.options.get("hires", {}).get("width") for row in rows]
    assert widths == [96, None, 128, 192]
    table = f'prompt,hires\na,"{json.dumps(HIRES).replace(chr(34), 2 * chr(34))}"\n'
    answer = post_file(http, table.encode(), "a.csv", defaults={"model": "sim"})
    assert answer.status_code == 202, answer.text


# --- upscale ---


def test_pixels_are_resampled_without_the_model(http: httpx2.Client, job: dict[str, Any]) -> None:
    source = job["images"][0]
    made = upscaled(http, source, scale=2)
    assert (made["kind"], made["init_image"]) == ("upscale", source["id"])
    assert made["hires"] == {
        "scale": 2.0,
        "strength": None,
        "steps": 0,
        "upscaler": "lanczos",
        "width": 192,
        "height": 192,
    }
    assert (made["executed_steps"], made["metrics"]["gpu_seconds"]) == (0, 0.0)
    expected = pixels(http, source).resize((192, 192), PILImage.Resampling.LANCZOS)
    assert np.array_equal(np.asarray(pixels(http, made["images"][0])), np.asarray(expected))
    receipt = receipt_of(http, made["images"][0])
    assert receipt["init_image_sha256"] == source["sha256"]
    assert (receipt["prompt"], receipt["seed"]) == (BODY["prompt"], source["seed"])
    result = http.post(
        f"/v1/images/{made['images'][0]['id']}/reproduce", headers={"Prefer": "wait=60"}
    ).json()
    assert result["verdict"] == "identical"


def test_resampled_pixels_take_no_device_and_no_text(
    http: httpx2.Client, database: sessionmaker[Session]
) -> None:
    source = done(http, prompt=" ".join(f"word{number}" for number in range(80)))
    assert "prompt_truncated" in {warning["code"] for warning in source["warnings"]}
    made = upscaled(http, source["images"][0], scale=2)
    assert "prompt_truncated" not in {warning["code"] for warning in made["warnings"]}
    image = made["images"][0]["id"]
    again = http.post(f"/v1/images/{image}/reproduce", headers={"Prefer": "wait=60"}).json()
    assert again["verdict"] == "identical"
    ids = [decode_id("job", made["id"]), decode_id("job", again["job"]["id"])]
    with database() as session:
        reserved = select(Job.estimated_gpu_seconds).where(Job.id.in_(ids))
        assert session.scalars(reserved).all() == [0.0, 0.0]


def test_latents_are_upscaled_with_the_images_own_prompt_and_seed(
    http: httpx2.Client, job: dict[str, Any]
) -> None:
    source = job["images"][1]
    made = upscaled(http, source, scale=1.5, method="latent", steps=10)
    assert (made["prompt"], made["seeds"]) == (BODY["prompt"], [source["seed"]])
    assert made["executed_steps"] == 7
    assert (made["images"][0]["width"], made["images"][0]["height"]) == (144, 144)
    assert made["metrics"]["gpu_seconds"] > 0
    image = f"/v1/images/{made['images'][0]['id']}"
    assert (
        http.post(f"{image}/reproduce", headers={"Prefer": "wait=60"}).json()["verdict"]
        == "identical"
    )
    file = http.get(f"{image}/content?proxy=1").content
    found = http.post("/v1/images/inspect", files={"file": ("a.png", file)}).json()
    assert any("upscale" in note for note in found["notes"])


@pytest.mark.usefixtures("demo_worker")
def test_the_real_model_does_both(http: httpx2.Client) -> None:
    fields = {"model": "demo", "steps": 4, "width": 64, "height": 64}
    made = done(http, **fields, hires={"scale": 2, "steps": 5, "strength": 0.6})
    assert pixels(http, made["images"][0]).size == (128, 128)
    result = http.post(
        f"/v1/images/{made['images'][0]['id']}/reproduce", headers={"Prefer": "wait=60"}
    ).json()
    assert result["verdict"] == "identical", result["reason"]
    larger = upscaled(http, made["images"][0], scale=1.5, method="latent", steps=4)
    assert pixels(http, larger["images"][0]).size == (192, 192)


@pytest.mark.parametrize(
    ("body", "pointer", "code"),
    [
        ({"scale": 1}, "/scale", "greater_than"),
        ({"method": "esrgan"}, "/method", "literal_error"),
        ({"strength": 0.5}, "/strength", "strength_without_latent"),
        ({"steps": 5}, "/steps", "steps_without_latent"),
        ({"method": "latent", "steps": 1, "strength": 0.5}, "/strength", "strength_too_low"),
        ({"method": "latent", "steps": 101}, "/steps", "steps_over_limit"),
        ({"prompt": "another"}, "/prompt", "extra_forbidden"),
    ],
)
def test_bad_upscalings_are_refused_with_a_pointer(
    http: httpx2.Client, job: dict[str, Any], body: dict[str, Any], pointer: str, code: str
) -> None:
    problem = http.post(f"/v1/images/{job['images'][0]['id']}/upscale", json=body).json()
    assert problem["status"] == 422, problem
    assert (pointer, code) in [(each["pointer"], each["code"]) for each in problem["errors"]]


def test_an_upscaled_image_has_a_limit_as_well(http: httpx2.Client) -> None:
    large = done(http, width=512, height=512)["images"][0]
    path = f"/v1/images/{large['id']}/upscale"
    problem = http.post(path, json={"scale": 2, "method": "latent"}).json()
    assert problem["errors"][0]["pointer"] == "/scale"
    assert problem["errors"][0]["code"] == "size_over_limit"
    larger = upscaled(http, large, scale=4)["images"][0]
    assert larger["width"] == 2048
    problem = http.post(f"/v1/images/{larger['id']}/upscale", json={"scale": 2.1}).json()
    assert problem["errors"][0]["code"] == "size_over_limit"


def test_an_upscaling_that_is_sent_again_gets_its_answer(
    http: httpx2.Client, job: dict[str, Any]
) -> None:
    path, key = f"/v1/images/{job['images'][0]['id']}/upscale", {"Idempotency-Key": "larger"}
    first = http.post(path, json={"scale": 2}, headers=key)
    again = http.post(path, json={"scale": 2}, headers=key)
    assert (again.content, again.headers["Idempotency-Replayed"]) == (first.content, "true")
    other = http.post(path, json={"scale": 3}, headers=key)
    check_problem(other, 422, "idempotency_key_reuse")
    elsewhere = f"/v1/images/{job['images'][1]['id']}/upscale"
    check_problem(
        http.post(elsewhere, json={"scale": 2}, headers=key), 422, "idempotency_key_reuse"
    )


def test_its_answer_outlives_the_image(http: httpx2.Client) -> None:
    source = done(http)["images"][0]
    path, key = f"/v1/images/{source['id']}/upscale", {"Idempotency-Key": "larger, and gone"}
    first = http.post(path, json={}, headers=key)
    made = http.get(first.headers["Location"], headers=WAIT).json()
    assert made["state"] == "succeeded", made
    assert http.delete(f"/v1/images/{source['id']}").status_code in (200, 204)
    again = http.post(path, json={}, headers=key)
    assert (again.content, again.headers["Idempotency-Replayed"]) == (first.content, "true")
    check_problem(http.post(path, json={}), 404, "not_found")


@pytest.fixture
def as_key(api: ApiProcess, settings: Settings) -> Iterator[Callable[..., httpx2.Client]]:
    """A client with another key."""
    opened: list[httpx2.Client] = []

    def open_client(tenant: str, **access: Any) -> httpx2.Client:
        url = settings.database_url.get_secret_value()
        key = create_key(url, tenant=tenant, name="hires", **access)
        headers = {"Authorization": f"Bearer {key}"}
        opened.append(httpx2.Client(base_url=api.url, headers=headers, timeout=70))
        return opened[-1]

    yield open_client
    for client in opened:
        client.close()


def test_scopes_tenants_and_quotas_hold_for_it(
    http: httpx2.Client, as_key: Callable[..., httpx2.Client], job: dict[str, Any]
) -> None:
    path = f"/v1/images/{job['images'][0]['id']}/upscale"
    stranger = as_key("hires-stranger", scopes=("jobs", "images"))
    check_problem(stranger.post(path, json={}), 404, "not_found")
    reader = as_key("hires-reader", scopes=("images",))
    check_problem(reader.post(path, json={}), 403, "insufficient_scope")
    small = as_key("hires-small", scopes=("jobs", "images"), quotas=Quotas(max_pixels=64 * 64))
    body = {"prompt": "a circle", "model": "sim"}
    assert small.post("/v1/jobs", json=body, headers=WAIT).status_code == 202
    refused = small.post("/v1/jobs", json={**body, "hires": {"scale": 2}})
    check_problem(refused, 403, "size_not_allowed")
    own = small.post("/v1/jobs", json=body, headers=WAIT).json()["images"][0]["id"]
    check_problem(small.post(f"/v1/images/{own}/upscale", json={}), 403, "size_not_allowed")


def test_the_row_keeps_what_the_answer_says(
    job: dict[str, Any], database: sessionmaker[Session]
) -> None:
    row_id: UUID = decode_id("job", job["id"])
    with database() as session:
        row = session.get_one(Job, row_id)
        assert row.options == {"hires": job["hires"]}
        assert row.cost == 2 * (64 * 64 * 4 + 96 * 96 * 5)
