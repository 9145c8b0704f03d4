"""Inpainting and outpainting: what stays, what is kept and recorded, and what is refused."""

import io
from typing import Any

import httpx2
import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from sqlalchemy import select
from sqlalchemy.orm import Session, sessionmaker

from shared.core.ids import decode_id
from shared.jobs.models import Job
from tests.images import data_url, encode
from tests.integration.api.images.conftest import assert_kept_for_its_job
from tests.integration.api.images.test_images import read
from tests.integration.api.test_bad_input import check_problem
from tests.integration.batches.client import jsonl, post_file
from tests.processes import ApiProcess

SIZE = (96, 64)


def photograph(mode: str = "RGB") -> Image.Image:
    pixels = np.random.default_rng(5).integers(0, 255, (SIZE[1], SIZE[0], 3), dtype=np.uint8)
    return Image.fromarray(pixels).convert(mode)


def mask(size: tuple[int, int] = SIZE, white: int = 255) -> Image.Image:
    made = Image.new("L", size)
    ImageDraw.Draw(made).rectangle((40, 10, 70, 50), fill=white)
    return made


def holed() -> Image.Image:
    made = photograph()
    made.putalpha(Image.eval(mask(), lambda value: 255 - value))
    return made


def painted(grey: int, width: int) -> Image.Image:
    """A line on nothing, as editors export masks."""
    made = Image.new("RGBA", SIZE)
    ImageDraw.Draw(made).line((48, 8, 48, 56), (grey, grey, grey, 255), width)
    return made


def made_of(http: httpx2.Client, job: dict[str, Any]) -> NDArray[np.uint8]:
    return np.asarray(Image.open(io.BytesIO(read(http, job))).convert("RGB"))


BODY: dict[str, Any] = {"prompt": "a lamp", "model": "sim", "seed": 3, "steps": 3}
START = data_url(encode(photograph()))
MASK = data_url(encode(mask()))


def submit(http: httpx2.Client, **fields: Any) -> dict[str, Any]:
    answer = http.post("/v1/jobs", json={**BODY, **fields}, headers={"Prefer": "wait=60"})
    job: dict[str, Any] = answer.json()
    assert job.get("state") == "succeeded", answer.text
    return job


def test_outside_the_mask_nothing_changes(http: httpx2.Client) -> None:
    job = submit(http, init_image=START, mask_image=MASK, mask_blur=0, width=96, height=64)
    assert (job["kind"], job["strength"], job["mask_blur"]) == ("inpaint", 1.0, 0)
    assert job["mask_image"].startswith("upl_")
    pixels, white = made_of(http, job), np.asarray(mask()) == 255
    assert np.array_equal(pixels[~white], np.asarray(photograph())[~white])
    assert not np.array_equal(pixels[white], np.asarray(photograph())[white])


def test_the_mask_is_on_the_receipt_by_its_hash_and_the_job_can_be_made_again(
    http: httpx2.Client,
) -> None:
    job = submit(http, init_image=START, mask_image=MASK, padding_mask_crop=8)
    image = job["images"][0]
    receipt = http.get(f"/v1/images/{image['id']}/receipt").json()
    upload = http.get(f"/v1/uploads/{job['mask_image']}").json()
    assert receipt["mask_sha256"] == upload["sha256"]
    assert (receipt["mask_blur"], receipt["padding_mask_crop"]) == (4, 8)
    assert receipt["preserve_unmasked"] is True
    again = http.post(f"/v1/images/{image['id']}/reproduce", headers={"Prefer": "wait=60"}).json()
    assert again["verdict"] == "identical"
    found = http.post("/v1/images/inspect", files={"file": ("a.png", read(http, job))}).json()
    assert found["job"]["mask_image"] == job["mask_image"]
    other = submit(http, **found["job"])
    assert other["images"][0]["sha256"] == image["sha256"]
    search = http.get("/v1/search", params={"kind": "inpaint"})
    assert image["id"] in search.text


def test_what_is_masked_may_begin_with_the_colors_around_it(http: httpx2.Client) -> None:
    fields: dict[str, Any] = {"init_image": START, "mask_image": MASK, "mask_blur": 0}
    fields |= {"width": 96, "height": 64, "strength": 0.5, "padding_mask_crop": 4}
    usual, filled = (
        submit(http, **fields, masked_content=content) for content in ("original", "fill")
    )
    assert not np.array_equal(made_of(http, usual), made_of(http, filled))
    white = np.asarray(mask()) == 255
    assert np.array_equal(made_of(http, filled)[~white], np.asarray(photograph())[~white])
    image = f"/v1/images/{filled['images'][0]['id']}"
    assert http.get(f"{image}/receipt").json()["masked_content"] == "fill"
    again = http.post(f"{image}/reproduce").json()
    assert (again["verdict"], again["job"]["masked_content"]) == ("identical", "fill")
    body = {**BODY, "init_image": START, "masked_content": "fill"}
    problem = check_problem(http.post("/v1/jobs", json=body), 422, "validation_failed")
    assert problem["errors"][0]["pointer"] == "/masked_content"


def test_transparency_may_be_the_mask(http: httpx2.Client) -> None:
    upload = http.post("/v1/uploads", files={"file": ("a.png", encode(holed()))}).json()
    fields = {"mask_from_alpha": True, "mask_blur": 0, "width": 96, "height": 64}
    job = submit(http, init_image=upload["id"], **fields)
    assert (job["kind"], job["mask_image"]) == ("inpaint", None)
    pixels, white = made_of(http, job), np.asarray(mask()) == 255
    assert np.array_equal(pixels[~white], np.asarray(photograph())[~white])
    # Without it the image is what it has always been: laid over white.
    plain = submit(http, init_image=upload["id"])
    flat = Image.composite(Image.new("RGB", SIZE, "white"), photograph(), mask())
    expected = submit(http, init_image=data_url(encode(flat)))
    assert plain["images"][0]["sha256"] != expected["images"][0]["sha256"]  # other receipts
    assert np.array_equal(made_of(http, plain), made_of(http, expected))


def test_what_is_transparent_in_a_mask_stays(http: httpx2.Client) -> None:
    made = painted(255, width=20)
    white, given = np.asarray(made)[..., 3], data_url(encode(made))
    job = submit(http, init_image=START, mask_image=given, mask_blur=0, width=96, height=64)
    pixels = made_of(http, job)
    assert np.array_equal(pixels[white == 0], np.asarray(photograph())[white == 0])
    assert not np.array_equal(pixels[white == 255], np.asarray(photograph())[white == 255])


def test_a_thin_mask_is_refused_for_its_blur_and_not_for_its_width(http: httpx2.Client) -> None:
    fields: dict[str, Any] = {"init_image": START, "width": 96, "height": 64}
    fields["mask_image"] = data_url(encode(painted(255, width=5)))
    problem = check_problem(
        http.post("/v1/jobs", json={**BODY, **fields}), 422, "validation_failed"
    )
    assert "mask_blur 4" in problem["errors"][0]["message"]
    submit(http, **fields, mask_blur=1)


def test_an_image_is_painted_on_beyond_its_edges(http: httpx2.Client) -> None:
    borders = {"left": 32, "right": 0, "top": 0, "bottom": 64}
    job = submit(http, init_image=START, expand=borders, mask_blur=0)
    assert (job["kind"], job["width"], job["height"]) == ("inpaint", 128, 128)
    assert job["expand"] == borders
    pixels = made_of(http, job)
    assert np.array_equal(pixels[:64, 32:], np.asarray(photograph()))
    given = submit(http, init_image=START, expand={"left": 64}, width=128, height=64)
    assert (given["width"], given["height"]) == (128, 64)


def test_a_mask_is_kept_for_its_job(lone_api: ApiProcess, database: sessionmaker[Session]) -> None:
    http = lone_api.http
    image = http.post("/v1/uploads", files={"file": ("m.png", encode(mask()))}).json()
    body = {"prompt": "a lamp", "init_image": START, "mask_image": image["id"]}
    job = http.post("/v1/jobs", json=body).json()
    assert job["mask_image"] == image["id"], job
    assert_kept_for_its_job(http, database, job, image["id"])


BAD: dict[str, tuple[dict[str, Any], str, str]] = {
    "without an image": ({"mask_image": MASK}, "/mask_image", "mask_without_init_image"),
    "alpha without an image": (
        {"mask_from_alpha": True},
        "/mask_from_alpha",
        "mask_without_init_image",
    ),
    "expand without an image": ({"expand": {"left": 8}}, "/expand", "mask_without_init_image"),
    "of another size": (
        {"init_image": START, "mask_image": data_url(encode(mask((96, 96))))},
        "/mask_image",
        "mask_size",
    ),
    "all black": (
        {"init_image": START, "mask_image": data_url(encode(mask(white=100)))},
        "/mask_image",
        "empty_mask",
    ),
    "black, and else transparent": (
        {"init_image": START, "mask_image": data_url(encode(painted(0, width=20)))},
        "/mask_image",
        "empty_mask",
    ),
    "thin": (
        {"init_image": START, "mask_image": data_url(encode(painted(255, width=5)))},
        "/mask_image",
        "empty_mask",
    ),
    "nowhere transparent": (
        {"init_image": START, "mask_from_alpha": True},
        "/mask_from_alpha",
        "empty_mask",
    ),
    "mask and expand": (
        {"init_image": START, "mask_image": MASK, "expand": {"left": 8}},
        "/expand",
        "conflicting_masks",
    ),
    "expand by nothing": ({"init_image": START, "expand": {}}, "/expand", "empty_expand"),
    "expand by less": (
        {"init_image": START, "expand": {"left": -8}},
        "/expand/left",
        "greater_than_equal",
    ),
    "expand by too much": (
        {"init_image": START, "expand": {"left": 4096}},
        "/expand",
        "expand_over_limit",
    ),
    "expand that leaves nothing": (
        {"init_image": START, "expand": {"left": 96}, "width": 128},
        "/expand",
        "expand_over_limit",
    ),
    "expand that leaves nothing of the other side": (
        {"init_image": START, "expand": {"bottom": 4096}, "width": 128},
        "/expand",
        "expand_over_limit",
    ),
    "blur without a mask": (
        {"init_image": START, "mask_blur": 8},
        "/mask_blur",
        "mask_option_without_mask",
    ),
    "too much blur": (
        {"init_image": START, "mask_image": MASK, "mask_blur": 65},
        "/mask_blur",
        "less_than_equal",
    ),
    "a second pass": (
        {"init_image": START, "mask_image": MASK, "hires": {}},
        "/hires",
        "hires_with_mask",
    ),
    "no image": (
        {"init_image": START, "mask_image": data_url(b"hello world")},
        "/mask_image",
        "image_not_recognized",
    ),
    "nothing known": (
        {"init_image": START, "mask_image": "hello"},
        "/mask_image",
        "malformed_mask_image",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_what_makes_no_sense_is_refused_with_its_field(http: httpx2.Client, name: str) -> None:
    fields, pointer, code = BAD[name]
    answer = http.post("/v1/jobs", json={**BODY, **fields})
    problem = check_problem(answer, 422, "validation_failed")
    assert (problem["errors"][0]["pointer"], problem["errors"][0]["code"]) == (pointer, code)


def test_a_mask_of_another_tenant_does_not_exist(
    http: httpx2.Client, stranger: httpx2.Client
) -> None:
    upload = stranger.post("/v1/uploads", files={"file": ("m.png", encode(mask()))}).json()
    body = {**BODY, "init_image": START, "mask_image": upload["id"]}
    problem = check_problem(http.post("/v1/jobs", json=body), 404, "not_found")
    assert problem["errors"][0]["code"] == "mask_image_not_found"


def test_lines_of_a_batch_have_masks(http: httpx2.Client, database: sessionmaker[Session]) -> None:
    def kept(image: Image.Image) -> str:
        files = {"file": ("m.png", encode(image))}
        return str(http.post("/v1/uploads", files=files).json()["id"])

    start, white, other = kept(photograph()), kept(mask()), kept(mask((96, 96)))
    black, thin = kept(mask(white=100)), kept(painted(255, width=5))
    good = [
        {**BODY, "init_image": start, "mask_image": white, "mask_blur": 2},
        {**BODY, "init_image": start, "expand": {"right": 32}},
    ]
    bad = [
        {**BODY, "init_image": start, "mask_image": other},
        {**BODY, "init_image": start, "expand": {"left": 4000}},
        {**BODY, "init_image": start, "expand": {"right": 4000}, "height": 64},
        {**BODY, "init_image": start, "mask_image": MASK},
        {**BODY, "init_image": start, "mask_image": black},
        {**BODY, "init_image": start, "mask_image": thin},
        {**BODY, "init_image": start, "mask_from_alpha": True},
    ]
    answer = post_file(http, jsonl([*good, *bad]), on_error="skip")
    assert answer.status_code == 202, answer.text
    batch = answer.json()
    with database() as session:
        jobs = session.scalars(
            select(Job).where(Job.batch_id == decode_id("batch", batch["id"])).order_by(Job.line)
        ).all()
    assert [job.kind for job in jobs] == ["inpaint", "inpaint"]
    assert [(job.init_image or {}).get("mask", {}).get("ref") for job in jobs] == [white, None]
    assert (jobs[1].width, jobs[1].options["expand"]["right"]) == (128, 32)
    refused = answer.text + http.get(f"/v1/batches/{batch['id']}/errors").text
    assert refused.count("empty_mask") >= 3
    for said in ("is black throughout", "mask_blur 4", "is nowhere transparent"):
        assert said in refused
    for code in ("mask_size", "expand_over_limit", "malformed_mask_image"):
        assert code in refused


def test_a_table_has_columns_for_masks(
    http: httpx2.Client, database: sessionmaker[Session]
) -> None:
    def kept(image: Image.Image) -> str:
        files = {"file": ("m.png", encode(image))}
        return str(http.post("/v1/uploads", files=files).json()["id"])

    start, white, clear = kept(photograph()), kept(mask()), kept(holed())
    table = (
        "prompt,init_image,mask_image,mask_blur,mask_from_alpha,expand,padding_mask_crop\n"
        f"one,{start},{white},2,,,16\n"
        f"two,{clear},,0,TRUE,,\n"
        f'three,{start},,,,"{{""left"": 32}}",\n'
    )
    defaults = {"model": "sim", "steps": 3}
    answer = post_file(http, table.encode(), "prompts.csv", defaults=defaults)
    assert answer.status_code == 202, answer.text
    with database() as session:
        of_batch = Job.batch_id == decode_id("batch", answer.json()["id"])
        jobs = session.scalars(select(Job).where(of_batch).order_by(Job.line)).all()
    assert [job.kind for job in jobs] == ["inpaint"] * 3
    assert [(job.init_image or {}).get("mask", {}).get("ref") for job in jobs] == [
        white,
        None,
        None,
    ]
    assert jobs[0].options == {"mask_blur": 2, "padding_mask_crop": 16}
    assert jobs[1].options == {"mask_blur": 0, "mask_from_alpha": True}
    assert jobs[2].options["expand"]["left"] == 32
