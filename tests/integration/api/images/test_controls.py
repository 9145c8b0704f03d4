"""ControlNets: over every way in and out, how their images are kept, and what is refused."""

import asyncio
import hashlib
from pathlib import Path
from typing import Any

import httpx2
import pytest
from PIL import Image
from sqlalchemy import select
from sqlalchemy.orm import Session, sessionmaker

from api.app import open_resources
from api.core.principal import Principal
from api.jobs.init_images import resolve_images
from api.jobs.planning import plan_job
from api.jobs.submission import JobSubmission
from darkroom import Client
from shared.core import tenants
from shared.core.errors import StorageUnavailable
from shared.core.ids import decode_id
from shared.core.settings import Settings
from shared.core.storage import Storage
from shared.jobs.models import Job
from tests.conftest import MODELS
from tests.images import data_url, encode, png
from tests.integration.api.images.conftest import assert_kept_for_its_job
from tests.integration.api.images.test_images import read
from tests.integration.api.test_bad_input import BAD_FIELDS, check_problem
from tests.integration.batches.client import jsonl, post_file
from tests.processes import ApiProcess

BODY: dict[str, Any] = {"prompt": "a lamp", "model": "sim", "seed": 3, "steps": 3}
WAIT = {"Prefer": "wait=60"}
RED, BLUE = (png(colour, 96, 64) for colour in ("red", "blue"))
DEFAULTS = {"scale": 1.0, "start": 0.0, "end": 1.0, "preprocess": "none", "low": None, "high": None}
CANNY = {**DEFAULTS, "preprocess": "canny", "low": 100, "high": 200}
_FILES = (MODELS.parent / "controlnets" / "edges").iterdir()
_DIGESTS = [hashlib.sha256(file.read_bytes()).hexdigest() for file in sorted(_FILES)]
SHA256 = hashlib.sha256("".join(_DIGESTS).encode()).hexdigest()


def edges(image: str, **fields: Any) -> dict[str, Any]:
    return {"name": "edges", "image": image, **fields}


def make(http: httpx2.Client, *controls: dict[str, Any], **fields: Any) -> dict[str, Any]:
    body = {**BODY, "controls": [*controls], **fields}
    answer = http.post("/v1/jobs", json=body, headers={"Prefer": "wait=60"})
    job: dict[str, Any] = answer.json()
    assert "state" in job, answer.text
    return job


def submit(http: httpx2.Client, *controls: dict[str, Any], **fields: Any) -> dict[str, Any]:
    job = make(http, *controls, **fields)
    assert job["state"] == "succeeded", job["error"]
    return job


def upload(http: httpx2.Client, file: bytes) -> str:
    files = {"file": ("a.png", file)}
    return str(http.post("/v1/uploads", files=files).json()["id"])


def test_controls_are_on_the_receipt_by_their_hashes_and_the_job_can_be_made_again(
    http: httpx2.Client,
) -> None:
    second = {"name": "xl-edges", "scale": 0.5, "start": 0.2, "end": 0.8}
    job = submit(
        http,
        edges(data_url(RED), preprocess="canny", low=50),
        {**second, "image": upload(http, BLUE)},
    )
    images = [control.pop("image") for control in job["controls"]]
    expected = [{"name": "edges", **CANNY, "low": 50}, {**DEFAULTS, **second}]
    assert job["controls"] == expected
    image = job["images"][0]
    receipt = http.get(f"/v1/images/{image['id']}/receipt").json()
    hashes = [http.get(f"/v1/uploads/{one}").json()["sha256"] for one in images]
    assert receipt["controls"] == [
        {**control, "sha256": SHA256, "image_sha256": sha256}
        for control, sha256 in zip(expected, hashes, strict=True)
    ]
    again = http.post(f"/v1/images/{image['id']}/reproduce").json()
    assert again["verdict"] == "identical", again["reason"]
    whole = [{**one, "image": of} for one, of in zip(expected, images, strict=True)]
    assert again["job"]["controls"] == whole
    found = http.post("/v1/images/inspect", files={"file": ("a.png", read(http, job))}).json()
    other = submit(http, *found["job"].pop("controls"), **found["job"])
    assert other["images"][0]["sha256"] == image["sha256"]
    assert other["controls"] == whole


def test_a_resize_mode_fits_what_a_controlnet_sees(http: httpx2.Client) -> None:
    size = {"width": 64, "height": 128}
    tall = Image.new("RGB", (96, 64), "red")
    tall.paste("blue", (0, 0, 16, 64))
    drawn = upload(http, encode(tall))
    cropped = submit(http, edges(drawn), **size)
    fitted = submit(http, edges(drawn), resize_mode="fit", **size)
    assert (cropped["resize_mode"], fitted["resize_mode"]) == (None, "fit")
    assert cropped["images"][0]["sha256"] != fitted["images"][0]["sha256"]
    found = http.post("/v1/images/inspect", files={"file": ("a.png", read(http, fitted))}).json()
    assert found["job"]["resize_mode"] == "fit"
    again = submit(http, *found["job"].pop("controls"), **found["job"])
    assert again["images"][0]["sha256"] == fitted["images"][0]["sha256"]
    made_again = http.post(f"/v1/images/{fitted['images'][0]['id']}/reproduce", headers=WAIT).json()
    assert made_again["verdict"] == "identical", made_again["reason"]


def test_an_image_that_is_named_twice_is_kept_once(http: httpx2.Client) -> None:
    job = submit(http, edges(data_url(RED)), edges(data_url(BLUE)), init_image=data_url(RED))
    assert job["controls"][0]["image"] == job["init_image"] != job["controls"][1]["image"]


def test_images_that_no_job_will_name_are_removed(
    database: sessionmaker[Session], settings: Settings, storage: Storage
) -> None:
    """At an outage behind the first as at a refusal."""
    with database.begin() as session:
        tenant_id = session.scalars(tenants.ensure_tenant("tests of controls")).one()
    nobody = Principal(tenant_id, "nobody", frozenset({"jobs"}))
    submission = JobSubmission.model_validate(
        {**BODY, "init_image": data_url(RED), "mask_image": data_url(BLUE)}
    )

    async def trial() -> list[str]:
        async with open_resources(settings) as held:
            plan = plan_job(submission, held.catalog, settings, {}, {})
            put = held.storage.put
            keys: list[str] = []

            def fail_behind_the_first(key: str, *args: Any) -> None:
                if keys:
                    raise StorageUnavailable("it is away")
                put(key, *args)
                keys.append(key)

            held.storage.put = fail_behind_the_first  # type: ignore[assignment,method-assign]
            with pytest.raises(StorageUnavailable):
                await resolve_images(held, nobody, submission, plan)
            return keys

    [key] = asyncio.run(trial())
    assert storage.list_keys(key) == []


def test_each_control_and_each_of_its_fields_counts(http: httpx2.Client) -> None:
    red, blue = upload(http, RED), upload(http, BLUE)
    images = [
        submit(http, *controls)["images"][0]["sha256"]
        for controls in (
            (),
            (edges(red),),
            (edges(blue),),
            (edges(red, preprocess="canny"),),
            (edges(red, scale=0.5),),
            (edges(red, start=0.5),),
            (edges(red, end=0.5),),
            (edges(red), edges(blue)),
        )
    ]
    assert len(set(images)) == len(images)


def test_controls_go_with_masks_second_passes_and_sizes(http: httpx2.Client) -> None:
    red = upload(http, RED)
    first = submit(http)["images"][0]["id"]
    white = data_url(encode(Image.new("L", (64, 64), 255)))
    submit(http, edges(red), init_image=first, mask_image=white)
    larger = submit(http, edges(first), hires={"scale": 2})
    assert (larger["images"][0]["width"], larger["controls"][0]["image"]) == (128, first)


def test_an_upscaled_image_is_made_with_the_same_nets_and_can_be_made_again(
    http: httpx2.Client, database: sessionmaker[Session]
) -> None:
    red = upload(http, RED)
    job = submit(http, edges(red, preprocess="canny", end=0.5), edges(data_url(BLUE), scale=0.7))
    path = f"/v1/images/{job['images'][0]['id']}/upscale"

    def upscaled(**fields: Any) -> dict[str, Any]:
        answer = http.post(path, json={"scale": 2, **fields})
        assert answer.status_code == 202, answer.text
        ended: dict[str, Any] = http.get(answer.headers["Location"], headers=WAIT).json()
        assert ended["state"] == "succeeded", ended
        return ended

    def cost_of(job: dict[str, Any]) -> int:
        with database() as session:
            row = session.get_one(Job, decode_id("job", job["id"]))
            return row.cost

    made = upscaled(method="latent")
    assert made["controls"] == job["controls"]
    assert cost_of(made) == round(128 * 128 * made["executed_steps"] * 1.6)
    receipts = [
        http.get(f"/v1/images/{one['images'][0]['id']}/receipt").json() for one in (job, made)
    ]
    assert receipts[0]["controls"] == receipts[1]["controls"]
    again = http.post(f"/v1/images/{made['images'][0]['id']}/reproduce").json()
    assert again["verdict"] == "identical", again["reason"]
    resampled = upscaled(method="lanczos")
    assert (resampled["controls"], cost_of(resampled)) == ([], 0)


def test_a_dry_run_keeps_nothing_and_counts_the_nets(http: httpx2.Client) -> None:
    before = http.get("/v1/usage").json()["upload_bytes"]

    def planned(*controls: dict[str, Any]) -> dict[str, Any]:
        body = {**BODY, "controls": controls}
        answer: dict[str, Any] = http.post("/v1/jobs?dry_run=true", json=body).json()
        return answer

    plain = planned()
    one = planned(edges(data_url(BLUE), preprocess="canny"))
    assert one["controls"] == [{**CANNY, "name": "edges", "image": None}]
    half = planned(edges(data_url(BLUE)), edges(data_url(RED), end=0.5))
    costs = [each["cost"] / plain["cost"] for each in (one, half)]
    assert costs == pytest.approx([1.4, 1.6], rel=0.01)
    assert http.get("/v1/usage").json()["upload_bytes"] == before


def test_a_model_lists_its_nets(http: httpx2.Client) -> None:
    models = {model["name"]: model for model in http.get("/v1/models").json()["data"]}
    assert models["sim"]["controlnets"] == ["edges", "xl-edges", "lost"]
    assert models["demo"]["controlnets"] == ["edges", "lost"]


def test_a_net_without_files_fails_its_job_and_no_other(http: httpx2.Client) -> None:
    job = make(http, {"name": "lost", "image": data_url(RED)})
    assert (job["state"], job["error"]["code"]) == ("failed", "controlnet_unavailable")
    assert "lost" in job["error"]["message"]
    assert len(job["attempts"]) == 1
    submit(http, edges(data_url(RED)))


def test_what_a_net_sees_is_kept_for_its_job(
    lone_api: ApiProcess, database: sessionmaker[Session]
) -> None:
    http = lone_api.http
    image = upload(http, RED)
    body = {"prompt": "a lamp", "model": "paper", "controls": [edges(image)]}
    job = http.post("/v1/jobs", json=body).json()
    assert job["controls"] == [{**DEFAULTS, "name": "edges", "image": image}], job
    assert_kept_for_its_job(http, database, job, image)


URL = data_url(RED)
BOMB = BAD_FIELDS["init_image is a bomb"]
BAD: dict[str, tuple[list[dict[str, Any]], str, str]] = {
    "an unknown name": ([edges(URL, name="egdes")], "/0/name", "unknown_controlnet"),
    "three": ([edges(URL)] * 3, "", "too_long"),
    "too strong": ([edges(URL, scale=2.1)], "/0/scale", "less_than_equal"),
    "less than nothing": ([edges(URL, scale=-0.1)], "/0/scale", "greater_than_equal"),
    "a late start": ([edges(URL, start=1)], "/0/start", "less_than"),
    "an early start": ([edges(URL, start=-0.1)], "/0/start", "greater_than_equal"),
    "a late end": ([edges(URL), edges(URL, end=1.1)], "/1/end", "less_than_equal"),
    "no time": ([edges(URL), edges(URL, start=0.6, end=0.6)], "/1/end", "empty_control"),
    "another preprocessor": ([edges(URL, preprocess="depth")], "/0/preprocess", "literal_error"),
    "a threshold alone": ([edges(URL, high=3)], "/0/high", "threshold_without_canny"),
    "thresholds that cross": (
        [edges(URL, preprocess="canny", low=9, high=8)],
        "/0/low",
        "conflicting_thresholds",
    ),
    "a threshold beyond white": (
        [edges(URL, preprocess="canny", high=256)],
        "/0/high",
        "less_than_equal",
    ),
    "no image": ([edges(data_url(b"hello world"))], "/0/image", "image_not_recognized"),
    "a bomb": ([edges(URL), edges(BOMB.fields["init_image"])], "/1/image", BOMB.code),
    "nothing known": ([edges("hello")], "/0/image", "malformed_control"),
    "no image at all": ([{"name": "edges"}], "/0/image", "missing"),
    "no name": ([{"image": URL}], "/0/name", "missing"),
    "a place of ours": ([edges(URL, s3_key="x")], "/0/s3_key", "extra_forbidden"),
}


@pytest.mark.parametrize("name", BAD)
def test_what_makes_no_sense_is_refused_with_its_field(http: httpx2.Client, name: str) -> None:
    controls, pointer, code = BAD[name]
    answer = http.post("/v1/jobs", json={**BODY, "controls": controls})
    problem = check_problem(answer, 422, "validation_failed")
    found = [(error["pointer"], error["code"]) for error in problem["errors"]]
    assert found == [(f"/controls{pointer}", code)]


def test_an_unknown_name_says_what_was_meant(http: httpx2.Client) -> None:
    body = {**BODY, "controls": [edges(URL, name="egdes")]}
    assert "Did you mean edges?" in http.post("/v1/jobs", json=body).text


def test_a_net_for_another_family_is_refused(http: httpx2.Client) -> None:
    body = {**BODY, "model": "demo", "controls": [edges(URL), edges(URL, name="xl-edges")]}
    problem = check_problem(http.post("/v1/jobs", json=body), 422, "validation_failed")
    found = [(error["pointer"], error["code"]) for error in problem["errors"]]
    assert found == [("/controls/1/name", "controlnet_not_supported")]


def test_what_a_net_sees_of_another_tenant_does_not_exist(
    http: httpx2.Client, stranger: httpx2.Client
) -> None:
    body = {**BODY, "controls": [edges(upload(stranger, RED))]}
    problem = check_problem(http.post("/v1/jobs", json=body), 404, "not_found")
    assert problem["errors"][0]["pointer"] == "/controls/0/image"
    assert problem["errors"][0]["code"] == "control_not_found"


def test_lines_of_a_batch_have_controls(
    http: httpx2.Client, stranger: httpx2.Client, database: sessionmaker[Session]
) -> None:
    red, alien = upload(http, RED), upload(stranger, RED)
    bad = [edges(alien), edges(URL), edges(red, scale=3), edges(red, name="nets")]
    lines = [{**BODY, "controls": [edges(red, preprocess="canny")]}]
    lines += [{**BODY, "controls": [each]} for each in bad]
    answer = post_file(http, jsonl(lines), on_error="skip")
    assert answer.status_code == 202, answer.text
    refused = answer.text + http.get(f"/v1/batches/{answer.json()['id']}/errors").text
    for code in (
        "control_not_found",
        "malformed_control",
        "less_than_equal",
        "unknown_controlnet",
    ):
        assert code in refused
    with database() as session:
        of_batch = select(Job).where(Job.batch_id == decode_id("batch", answer.json()["id"]))
        (job,) = session.scalars(of_batch).all()
    (control,) = job.options["controls"]
    assert control.pop("s3_key")
    assert control.pop("sha256")
    assert control == {**CANNY, "name": "edges", "image": red}


def test_the_client_sends_controls(
    api: ApiProcess, http: httpx2.Client, api_key: str, tmp_path: Path
) -> None:
    file = tmp_path / "red.png"
    file.write_bytes(RED)
    with Client(api.url, api_key) as client:
        job = client.jobs.submit(
            "a lamp",
            model="sim",
            steps=3,
            controls=[{"name": "edges", "image": file, "scale": 0.9, "preprocess": "canny"}],
        ).wait()
        (control,) = job.controls
        assert (control.image or "").startswith("upl_")
        assert (control.scale, control.low) == (0.9, 100)
        planned = client.jobs.dry_run(
            "a lamp", model="sim", controls=[{"name": "edges", "image": file}]
        )
        assert planned.controls[0].end == 1.0
