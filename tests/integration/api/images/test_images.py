"""Images made by a real worker on the simulated GPU: read, make again, inspect."""

import hashlib
import io
import json
from typing import Any

import httpx2
import pytest
from PIL import Image as Pillow
from PIL.PngImagePlugin import PngInfo
from sqlalchemy.orm import Session, sessionmaker

from shared.core.ids import decode_id
from shared.images.models import Image
from shared.images.receipts import read_receipt
from tests.images import encode
from tests.integration.api.test_bad_input import PNG, check_problem

Database = sessionmaker[Session]


@pytest.fixture(scope="module")
def job(http: httpx2.Client) -> dict[str, Any]:
    """A finished job with two images."""
    body = {"prompt": "a red circle", "negative_prompt": "blue", "seed": 40, "num_images": 2}
    answer = http.post("/v1/jobs", json={**body, "model": "sim"}, headers={"Prefer": "wait=60"})
    made: dict[str, Any] = answer.json()
    assert made["state"] == "succeeded", made
    return made


def image_path(job: dict[str, Any], index: int = 0) -> str:
    return f"/v1/images/{job['images'][index]['id']}"


def read(http: httpx2.Client, job: dict[str, Any], index: int = 0) -> bytes:
    return http.get(f"{image_path(job, index)}/content?proxy=1").content


def test_an_image_says_where_it_comes_from(http: httpx2.Client, job: dict[str, Any]) -> None:
    image = http.get(image_path(job, 1)).json()
    listed = http.get(job["links"]["images"]).json()["data"]
    assert [each["id"] for each in listed] == [each["id"] for each in job["images"]]
    assert (image["job_id"], image["index"], image["seed"]) == (job["id"], 1, 41)
    assert (image["prompt"], image["negative_prompt"]) == ("a red circle", "blue")
    assert image["model"] == "sim"
    assert image["gpu_seconds"] > 0
    assert http.get(image["links"]["job"]).json()["id"] == job["id"]


def test_an_image_can_be_read_in_three_ways(http: httpx2.Client, job: dict[str, Any]) -> None:
    content = f"{image_path(job)}/content"
    proxied = http.get(f"{content}?proxy=1")
    assert hashlib.sha256(proxied.content).hexdigest() == job["images"][0]["sha256"]
    assert proxied.headers["content-type"] == "image/png"
    redirect = http.get(content, follow_redirects=False)
    assert redirect.status_code == 302
    with httpx2.Client(trust_env=False) as anybody:
        assert anybody.get(redirect.headers["location"]).content == proxied.content
        assert anybody.get(job["images"][0]["url"]).content == proxied.content
        small = anybody.get(job["images"][0]["thumbnail_url"]).content
    proxied = http.get(f"{image_path(job)}/thumbnail?proxy=1")
    assert proxied.content == small
    known = {"If-None-Match": proxied.headers["etag"]}
    again = http.get(f"{image_path(job)}/thumbnail?proxy=1", headers=known)
    assert (again.status_code, again.content) == (304, b"")
    assert small[8:12] == b"WEBP"


def test_a_proxied_image_is_safe_to_open_and_to_keep(
    http: httpx2.Client, job: dict[str, Any]
) -> None:
    answer = http.get(f"{image_path(job)}/content?proxy=1&download=1")
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert answer.headers["content-disposition"].startswith("attachment; filename=")
    headers = {"If-None-Match": answer.headers["etag"]}
    again = http.get(f"{image_path(job)}/content?proxy=1", headers=headers)
    assert (again.status_code, again.content) == (304, b"")


@pytest.mark.parametrize("part", ["content", "thumbnail"])
def test_a_part_of_a_file_can_be_read(http: httpx2.Client, job: dict[str, Any], part: str) -> None:
    path = f"{image_path(job)}/{part}?proxy=1"
    whole = http.get(path)
    body, etag, size = whole.content, whole.headers["etag"], len(whole.content)
    assert whole.headers["accept-ranges"] == "bytes"
    for asked, first, last in [
        ("0-9", 0, 9), ("5-5", 5, 5), (f"{size - 4}-", size - 4, size - 1),
        ("-7", size - 7, size - 1),
        ("10-99999999", 10, size - 1), (f"-{size + 9}", 0, size - 1), (f"-{'9' * 30}", 0, size - 1),
    ]:  # fmt: skip
        answer = http.get(path, headers={"Range": f"bytes={asked}"})
        assert (answer.status_code, answer.content) == (206, body[first : last + 1])
        assert answer.headers["content-range"] == f"bytes {first}-{last}/{size}"
        assert (answer.headers["etag"], answer.headers["content-type"]) == (
            etag, whole.headers["content-type"],
        )  # fmt: skip
    for asked in (f"{size}-", "-0", f"{size}-{size + 9}", "9" * 30 + "-"):
        answer = http.get(path, headers={"Range": f"bytes={asked}"})
        check_problem(answer, 416, "range_not_satisfiable")
        assert answer.headers["content-range"] == f"bytes */{size}"
    for asked in ("bytes=0-1,4-5", "bytes=9-2", "bytes=-", "bytes=a-b", "lines=0-1", "bytes=٠-٩"):
        answer = http.get(path, headers={b"Range": asked.encode()})
        assert (answer.status_code, answer.content) == (200, body)
    fresh = {"Range": "bytes=0-9", "If-Range": etag}
    assert http.get(path, headers=fresh).status_code == 206
    for other in ('"other"', f"W/{etag}", "Sun, 06 Nov 1994 08:49:37 GMT"):
        assert http.get(path, headers={**fresh, "If-Range": other}).status_code == 200
    assert http.get(path, headers={**fresh, "If-None-Match": etag}).status_code == 304
    head = http.head(path, headers={"Range": "bytes=0-9"})
    assert (head.status_code, head.headers["content-length"]) == (200, str(size))


def test_if_none_match_means_the_same_everywhere(http: httpx2.Client, job: dict[str, Any]) -> None:
    for path in (
        f"{image_path(job)}/content?proxy=1",
        f"{image_path(job)}/thumbnail?proxy=1",
        f"/v1/jobs/{job['id']}",
        "/openapi.json",
    ):
        etag = http.get(path).headers["etag"]
        for known in ("*", etag, f'"a", {etag}', f"W/{etag.removeprefix('W/')}"):
            assert http.get(path, headers={"If-None-Match": known}).status_code == 304, path
        for unknown in ('"a"', etag.strip('W/"'), f'"x{etag.removeprefix("W/")[1:]}'):
            assert http.get(path, headers={"If-None-Match": unknown}).status_code == 200, path


def test_images_of_another_tenant_do_not_exist(
    stranger: httpx2.Client, job: dict[str, Any]
) -> None:
    for path in ("", "/content", "/content?proxy=1", "/thumbnail", "/receipt"):
        check_problem(stranger.get(image_path(job) + path), 404, "not_found")
    check_problem(stranger.post(f"{image_path(job)}/reproduce"), 404, "not_found")
    body = {"prompt": "a", "init_image": job["images"][0]["id"]}
    check_problem(stranger.post("/v1/jobs", json=body), 404, "not_found")


def test_an_image_can_be_the_start_of_another(http: httpx2.Client, job: dict[str, Any]) -> None:
    body = {"prompt": "at night", "init_image": job["images"][0]["id"], "model": "sim"}
    made = http.post("/v1/jobs", json=body, headers={"Prefer": "wait=60"}).json()
    assert (made["kind"], made["state"]) == ("img2img", "succeeded")


def test_the_receipt_is_the_one_in_the_image(http: httpx2.Client, job: dict[str, Any]) -> None:
    with Pillow.open(io.BytesIO(read(http, job))) as image:
        assert http.get(f"{image_path(job)}/receipt").json() == read_receipt(image)


def test_an_image_made_again_is_identical(http: httpx2.Client, job: dict[str, Any]) -> None:
    answer = http.post(f"{image_path(job, 1)}/reproduce")
    assert answer.status_code == 200
    result = answer.json()
    assert (result["verdict"], result["max_pixel_difference"]) == ("identical", 0)
    assert result["reason"]
    assert result["image"]["id"] != job["images"][1]["id"]
    assert result["image"]["seed"] == 41
    assert result["job"]["metadata"] == {"reproduces": job["images"][1]["id"]}
    again = http.post(result["links"]["again"])
    assert again.json()["image"]["id"] == result["image"]["id"]
    history = http.get(f"/v1/sessions/{job['session_id']}/images", params={"limit": 200}).json()
    assert result["image"]["id"] not in [image["id"] for image in history["data"]]


def test_who_does_not_wait_can_ask_again(http: httpx2.Client, job: dict[str, Any]) -> None:
    first = http.post(f"{image_path(job)}/reproduce", headers={"Prefer": "wait=0"})
    if first.status_code == 200:
        pytest.skip("the worker was faster than the answer")
    assert first.status_code == 202
    assert first.json()["verdict"] is None
    second = http.post(first.headers["location"])
    assert second.status_code == 200
    assert second.json()["job"]["id"] == first.json()["job"]["id"]


def test_a_job_that_reproduces_something_else_is_not_found(
    http: httpx2.Client, job: dict[str, Any]
) -> None:
    answer = http.post(f"{image_path(job)}/reproduce?job={job['id']}")
    check_problem(answer, 404, "not_found")


def test_a_changed_checkpoint_is_told_as_such(
    http: httpx2.Client, job: dict[str, Any], database: Database
) -> None:
    with database.begin() as session:
        row = session.get_one(Image, decode_id("img", job["images"][0]["id"]))
        before = row.receipt
        model = {**before["model"], "content_hash": "0" * 64}
        row.receipt = {**before, "model": model, "device": "another"}
    try:
        result = http.post(f"{image_path(job)}/reproduce", headers={"Prefer": "wait=60"}).json()
    finally:
        with database.begin() as session:
            row = session.get_one(Image, decode_id("img", job["images"][0]["id"]))
            row.receipt = before
    assert "checkpoint has changed" in result["reason"]
    assert "device" in result["reason"]


def test_inspect_reads_the_receipt_and_makes_a_job_of_it(
    http: httpx2.Client, job: dict[str, Any]
) -> None:
    content = read(http, job)
    answer = http.post("/v1/images/inspect", files={"file": ("a.png", content)})
    assert answer.status_code == 200
    found = answer.json()
    assert found["stored"] is True
    assert found["image"]["id"] == job["images"][0]["id"]
    assert found["receipt"]["seed"] == 40
    again = http.post("/v1/jobs", json=found["job"], headers={"Prefer": "wait=60"}).json()
    assert again["images"][0]["sha256"] == job["images"][0]["sha256"]


def test_an_image_of_another_tenant_is_readable_but_not_stored_here(
    http: httpx2.Client, stranger: httpx2.Client, job: dict[str, Any]
) -> None:
    content = read(http, job)
    found = stranger.post("/v1/images/inspect", files={"file": ("a.png", content)}).json()
    assert (found["stored"], found["image"]) == (False, None)
    assert found["job"]["seed"] == 40


def test_inspect_of_image_to_image_finds_the_start(
    http: httpx2.Client, stranger: httpx2.Client, job: dict[str, Any]
) -> None:
    body = {"prompt": "b", "init_image": job["images"][0]["id"], "model": "sim", "strength": 0.5}
    made = http.post("/v1/jobs", json=body, headers={"Prefer": "wait=60"}).json()
    files = {"file": ("a.png", read(http, made))}
    found = http.post("/v1/images/inspect", files=files).json()
    assert found["job"]["strength"] == 0.5
    again = http.post("/v1/jobs", json=found["job"], headers={"Prefer": "wait=60"}).json()
    assert again["images"][0]["sha256"] == made["images"][0]["sha256"]
    unknown = stranger.post("/v1/images/inspect", files=files).json()
    assert "init_image" not in unknown["job"]
    assert unknown["notes"]


@pytest.mark.parametrize(
    "mode",
    ["fit", *(pytest.param(mode, marks=pytest.mark.long) for mode in ("fill", "stretch"))],
)
def test_the_resize_mode_is_on_record_and_made_again(
    http: httpx2.Client, job: dict[str, Any], database: Database, mode: str
) -> None:
    fields = {"init_image": job["images"][0]["id"], "width": 128, "height": 64}
    body = {"prompt": "b", "model": "sim", "seed": 3, **fields}
    made = {
        each: http.post(
            "/v1/jobs", json={**body, "resize_mode": each}, headers={"Prefer": "wait=60"}
        ).json()
        for each in ("fill", "fit", "stretch")
    }
    assert len({each["images"][0]["sha256"] for each in made.values()}) == 3
    image = image_path(made[mode])
    assert http.get(f"{image}/receipt").json()["resize_mode"] == mode
    result = http.post(f"{image}/reproduce", headers={"Prefer": "wait=60"}).json()
    assert (result["verdict"], result["job"]["resize_mode"]) == ("identical", mode)
    files = {"file": ("a.png", read(http, made[mode]))}
    found = http.post("/v1/images/inspect", files=files).json()
    assert found["job"]["resize_mode"] == mode


def test_a_receipt_without_a_resize_mode_means_stretch(
    http: httpx2.Client, job: dict[str, Any], database: Database
) -> None:
    fields = {"init_image": job["images"][0]["id"], "width": 128, "height": 64, "seed": 3}
    body = {"prompt": "b", "model": "sim", "resize_mode": "stretch", **fields}
    made = http.post("/v1/jobs", json=body, headers={"Prefer": "wait=60"}).json()
    with database.begin() as session:
        row = session.get_one(Image, decode_id("img", made["images"][0]["id"]))
        row.receipt = {name: it for name, it in row.receipt.items() if name != "resize_mode"}
        old = json.dumps(row.receipt)
    result = http.post(f"{image_path(made)}/reproduce", headers={"Prefer": "wait=60"}).json()
    assert (result["verdict"], result["job"]["resize_mode"]) == ("identical", "stretch")
    found = http.post("/v1/images/inspect", files=with_receipt(old)).json()
    assert found["job"]["resize_mode"] == "stretch"


def with_receipt(text: str) -> dict[str, tuple[str, bytes]]:
    """A PNG that says so of itself."""
    chunks = PngInfo()
    chunks.add_itxt("darkroom", text)
    return {"file": ("a.png", encode(Pillow.new("RGB", (64, 64)), pnginfo=chunks))}


@pytest.mark.parametrize(
    "claim",
    [
        {"seed": 2**53},
        {"seed": 10**4000},
        {"seed": "7"},
        {"kind": "collage"},
        {"width": 65},
        {"height": 1_000_000},
        {"steps": 0},
        {"guidance_scale": -1},
        {"strength": 2, "kind": "img2img"},
        {"prompt": ""},
        {"prompt": "a" * 4001},
        {"prompt": "a\x1b[2J"},
        {"output_format": "gif"},
        {"init_image_sha256": "0" * 63},
        {"init_image_sha256": ["0"]},
        {"scheduler": None},
        {"model": {"name": "m" * 65}},
    ],
)
def test_a_receipt_that_no_job_could_have_is_none(
    http: httpx2.Client, job: dict[str, Any], claim: dict[str, Any]
) -> None:
    receipt = read_receipt(Pillow.open(io.BytesIO(read(http, job))))
    assert receipt is not None
    files = with_receipt(json.dumps(receipt | claim))
    check_problem(http.post("/v1/images/inspect", files=files), 422, "receipt_missing")


@pytest.mark.parametrize("more", [{"n": 10**4000}, {"n": [[[[[["deep"]]]]]]}, {"🌙": 1e300}])
def test_what_else_a_receipt_says_is_told_as_it_stands(
    http: httpx2.Client, job: dict[str, Any], more: dict[str, Any]
) -> None:
    receipt = read_receipt(Pillow.open(io.BytesIO(read(http, job))))
    assert receipt is not None
    answer = http.post("/v1/images/inspect", files=with_receipt(json.dumps(receipt | more)))
    assert answer.status_code == 200
    assert answer.json()["receipt"] == receipt | more
    assert answer.json()["job"]["seed"] == 40


@pytest.mark.parametrize(
    "output_format",
    ["png", *(pytest.param(other, marks=pytest.mark.long) for other in ("webp", "jpeg"))],
)
def test_the_longest_prompts_can_be_made_and_inspected(
    http: httpx2.Client, output_format: str
) -> None:
    body = {
        "prompt": "🌙" * 4000,
        "negative_prompt": "🏠" * 4000,
        "model": "sim",
        "output_format": output_format,
    }
    made = http.post("/v1/jobs", json=body, headers={"Prefer": "wait=60"}).json()
    assert made["state"] == "succeeded", made["error"]
    files = {"file": ("a", read(http, made))}
    found = http.post("/v1/images/inspect", files=files).json()
    assert found["job"]["negative_prompt"] == body["negative_prompt"]
    assert found["stored"] is True


def test_an_image_without_a_receipt_is_refused(http: httpx2.Client) -> None:
    answer = http.post("/v1/images/inspect", files={"file": ("a.png", PNG)})
    check_problem(answer, 422, "receipt_missing")
    answer = http.post("/v1/images/inspect", files={"file": ("a.png", b"hello")})
    check_problem(answer, 422, "image_refused")
