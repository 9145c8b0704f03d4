"""How images say that a model made them, and hashes that signing does not change."""

import hashlib
import io
from typing import Any

import httpx2
import pytest
from PIL import Image as Pillow

from shared.images.provenance import SOURCE_TYPE


def make(http: httpx2.Client, **fields: Any) -> dict[str, Any]:
    """The first image of a job."""
    body = {"prompt": "a red circle", "model": "sim", "seed": 5, **fields}
    job = http.post("/v1/jobs", json=body, headers={"Prefer": "wait=60"}).json()
    assert job["state"] == "succeeded", job
    image: dict[str, Any] = job["images"][0]
    return image


def content(http: httpx2.Client, image: dict[str, Any]) -> bytes:
    return http.get(f"/v1/images/{image['id']}/content?proxy=1").content


@pytest.mark.parametrize(
    "output",
    [
        "png",
        "jpeg",
        *(pytest.param(each, marks=pytest.mark.long) for each in ("webp", "webp at 80")),
    ],
)
def test_a_file_says_that_a_model_made_it_and_its_pixels_have_the_hash_on_record(
    http: httpx2.Client, output: str
) -> None:
    name, _, quality = output.partition(" at ")
    extra = {"output_quality": int(quality)} if quality else {}
    image = make(http, output_format=name, **extra)
    body = content(http, image)
    with Pillow.open(io.BytesIO(body)) as opened:
        pixels = opened.convert("RGB").tobytes()
        xmp = opened.info["xmp"]
    assert f'Iptc4xmpExt:DigitalSourceType="{SOURCE_TYPE}"'.encode() in xmp
    assert image["pixel_sha256"] == hashlib.sha256(pixels).hexdigest()
    assert image["sha256"] == hashlib.sha256(body).hexdigest()
    receipt = http.get(f"/v1/images/{image['id']}/receipt").json()
    assert receipt["provenance"] == "metadata"
    read = http.get(f"/v1/images/{image['id']}/provenance").json()
    assert read == {"state": "metadata", "digital_source_type": SOURCE_TYPE, "manifest": None}


def test_thumbnails_carry_no_claims(http: httpx2.Client) -> None:
    image = make(http)
    small = http.get(f"/v1/images/{image['id']}/thumbnail?proxy=1").content
    assert Pillow.open(io.BytesIO(small)).info.keys().isdisjoint({"xmp", "exif", "darkroom"})
