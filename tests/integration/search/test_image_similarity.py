"""Search by an image: one that is here, by id or by its file, or any with a receipt."""

import hashlib

import pytest
from PIL import Image
from sqlalchemy import update

from shared.core.ids import decode_id
from shared.images import models as image_models
from shared.images.receipts import RECEIPT_VERSION, png_chunks
from tests.images import encode
from tests.integration.search.conftest import Team


def image(prompt: str | None) -> bytes:
    """A PNG, with a receipt if there is a prompt."""
    chunks = None
    if prompt is not None:
        receipt = {
            "receipt_version": RECEIPT_VERSION, "prompt": prompt, "negative_prompt": None,
            "kind": "txt2img", "seed": 1, "width": 64, "height": 64, "steps": 4,
            "guidance_scale": 5.0, "scheduler": {"name": "ddim"}, "strength": None,
            "model": {"name": "sim", "content_hash": "0"}, "software": {"darkroom": "dev"},
        }  # fmt: skip
        chunks = png_chunks(receipt)
    return encode(Image.new("RGB", (64, 64), "navy"), pnginfo=chunks)


@pytest.fixture(scope="module")
def mountains(landscapes: Team) -> str:
    """The image of snowy mountains at sunset."""
    hit = landscapes.search("snowy mountains at sunset, a lake", seed=0)["data"][0]
    return str(hit["image"]["id"])


def test_images_like_one_that_is_here(landscapes: Team, mountains: str) -> None:
    answer = landscapes.http.post("/v1/search", json={"image_id": mountains})
    assert answer.status_code == 200, answer.text
    found = [hit["image"]["id"] for hit in answer.json()["data"]]
    assert mountains not in found
    assert len(found) == 11
    narrow = landscapes.http.post("/v1/search?seed=4&limit=1", json={"image_id": mountains})
    assert [hit["image"]["seed"] for hit in narrow.json()["data"]] == [4]


def test_a_file_that_is_here_is_known_by_its_bytes(landscapes: Team, mountains: str) -> None:
    data = image(None)
    with landscapes.database.begin() as session:
        session.execute(
            update(image_models.Image)
            .where(image_models.Image.id == decode_id("img", mountains))
            .values(sha256=hashlib.sha256(data).hexdigest())
        )
    answer = landscapes.http.post("/v1/search", files={"file": ("a.png", data)})
    assert answer.status_code == 200, answer.text
    assert mountains not in [hit["image"]["id"] for hit in answer.json()["data"]]


def test_a_file_from_elsewhere_is_known_by_its_receipt(landscapes: Team) -> None:
    data = image("violet hills at midnight, a full moon")
    answer = landscapes.http.post("/v1/search?limit=1", files={"file": ("a.png", data)})
    (hit,) = answer.json()["data"]
    assert hit["prompt"] == "violet hills at midnight, a full moon"


def test_an_image_of_which_nobody_knows_a_prompt_is_422(team: Team) -> None:
    refused = team.http.post("/v1/search", files={"file": ("a.png", image(None))})
    assert (refused.status_code, refused.json()["code"]) == (422, "prompt_unknown")
    refused = team.http.post("/v1/search", files={"file": ("a.png", b"not an image")})
    assert (refused.status_code, refused.json()["code"]) == (422, "image_refused")


def test_an_image_of_another_tenant_is_not_here(team: Team, mountains: str) -> None:
    for image_id in (mountains, "img_01jd4zk3v8e0x9m5q7r2t6w8ya", "x"):
        answer = team.http.post("/v1/search", json={"image_id": image_id})
        assert (answer.status_code, answer.json()["code"]) == (404, "not_found")


def test_a_body_that_names_nothing_is_refused(team: Team) -> None:
    assert team.http.post("/v1/search", json={}).status_code == 422
    assert team.http.post("/v1/search", json={"image_id": 7}).status_code == 422
    assert team.http.post("/v1/search", content=b"x").status_code == 415
