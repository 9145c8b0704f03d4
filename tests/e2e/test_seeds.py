"""The promise about seeds, through the HTTP API, on a real diffusers pipeline."""

import base64
import io
from typing import Any

import httpx2
import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from tests.processes import ApiProcess, WorkerProcess, wait_until

_END_SECONDS = 300.0
"""Until a job has ended, on a starved machine and behind what other tests have left."""

PROMPT = "snowy mountains at sunset, a lake"
SMALL = {"model": "demo", "width": 64, "height": 64}
"""A quarter of the model's usual size, in a quarter of the time."""


@pytest.fixture(scope="module")
def studio(api: ApiProcess, demo_worker: WorkerProcess) -> ApiProcess:
    """The API with a real pipeline behind it."""
    return api


def generate(studio: ApiProcess, **fields: Any) -> dict[str, Any]:
    body = {"prompt": PROMPT, **SMALL, "steps": 6, "session_id": "seeds", **fields}
    answer = studio.http.post("/v1/jobs", json=body, headers={"Prefer": "wait=60"})
    assert answer.status_code in (200, 202), answer.text
    job: dict[str, Any] = ended(studio, answer.json())
    assert job["state"] == "succeeded", job
    return job


def ended(studio: ApiProcess, job: dict[str, Any]) -> dict[str, Any]:
    """The job when it has ended."""

    def look() -> dict[str, Any] | None:
        answer = studio.http.get(f"/v1/jobs/{job['id']}")
        assert answer.status_code == 200, answer.text
        found: dict[str, Any] = answer.json()
        return None if found["state"] in ("queued", "running") else found

    found: dict[str, Any] = wait_until(look, _END_SECONDS, f"the end of {job['id']}")
    return found


def content(studio: ApiProcess, image: dict[str, Any]) -> bytes:
    answer = studio.http.get(f"/v1/images/{image['id']}/content?proxy=1")
    assert answer.status_code == 200
    return answer.content


def pixels(studio: ApiProcess, image: dict[str, Any]) -> NDArray[np.float64]:
    with Image.open(io.BytesIO(content(studio, image))) as decoded:
        return np.asarray(decoded.convert("RGB"), dtype=np.float64)


def hashes(job: dict[str, Any]) -> list[str]:
    return [image["sha256"] for image in job["images"]]


def test_the_same_seed_gives_the_same_bytes(studio: ApiProcess) -> None:
    first = generate(studio, seed=11)
    second = generate(studio, seed=11)
    assert hashes(first) == hashes(second)
    assert content(studio, first["images"][0]) == content(studio, second["images"][0])


def test_another_seed_another_prompt_or_negative_prompt_gives_another_image(
    studio: ApiProcess,
) -> None:
    images = [
        generate(studio, seed=11),
        generate(studio, seed=12),
        generate(studio, seed=11, prompt="a desert at night, a red house"),
        generate(studio, seed=11, negative_prompt="a lake"),
    ]
    assert len({job["images"][0]["sha256"] for job in images}) == len(images)


def test_one_seed_counts_up_and_each_image_can_be_made_again_alone(studio: ApiProcess) -> None:
    job = generate(studio, seed=11, num_images=3)
    assert job["seeds"] == [11, 12, 13]
    assert [image["seed"] for image in job["images"]] == [11, 12, 13]
    alone = generate(studio, seed=13)
    assert hashes(alone) == [hashes(job)[2]]


def test_seeds_are_known_before_the_image_exists(studio: ApiProcess) -> None:
    body = {"prompt": PROMPT, **SMALL, "steps": 4, "num_images": 2}
    accepted = studio.http.post("/v1/jobs", json=body)
    assert accepted.status_code == 202
    seeds = accepted.json()["seeds"]
    assert len(seeds) == 2
    again = generate(studio, seeds=seeds, steps=4)
    assert again["seeds"] == seeds


def test_image_to_image_follows_its_start(studio: ApiProcess) -> None:
    start = generate(studio, seed=21, prompt="a green hill at noon, a red house")["images"][0]
    origin = pixels(studio, start)

    def distance(strength: float) -> float:
        job = generate(studio, seed=5, steps=20, init_image=start["id"], strength=strength)
        assert job["kind"] == "img2img"
        return float(np.abs(pixels(studio, job["images"][0]) - origin).mean())

    near, far = distance(0.2), distance(0.9)
    assert near < far


def test_a_model_that_cuts_its_schedule_does_so_with_the_scheduler_lcm(studio: ApiProcess) -> None:
    """Its worker has announced what it is: all count the steps that the engine runs."""
    start = generate(studio, seed=21)["images"][0]["id"]
    fields = {"scheduler": "lcm", "init_image": start, "strength": 0.5}
    job = generate(studio, seed=5, **fields)
    assert job["progress"] == {"step": 3, "steps": 3, "fraction": 1.0}

    def ask(steps: int) -> httpx2.Response:
        body = {"prompt": PROMPT, **SMALL, "steps": steps, **fields}
        return studio.http.post("/v1/jobs", params={"dry_run": "1"}, json=body)

    assert ask(6).json()["cost"] == 64 * 64 * 3
    refused = ask(1).json()
    assert [error["code"] for error in refused["errors"]] == ["strength_too_low"]


def test_an_upload_a_data_url_and_an_image_start_the_same_image(studio: ApiProcess) -> None:
    start = generate(studio, seed=21)["images"][0]
    body = content(studio, start)
    uploaded = studio.http.post("/v1/uploads", files={"file": ("start.png", body, "image/png")})
    assert uploaded.status_code == 201, uploaded.text
    data_url = "data:image/png;base64," + base64.b64encode(body).decode()
    made = [
        generate(studio, seed=5, init_image=reference, strength=0.5)
        for reference in (start["id"], uploaded.json()["id"], data_url)
    ]
    # Pixels, not files: the receipt inside names the file that the image started from.
    first, *others = [pixels(studio, job["images"][0]) for job in made]
    assert all(np.array_equal(first, other) for other in others)


def test_an_image_can_be_reproduced_from_its_receipt(studio: ApiProcess) -> None:
    image = generate(studio, seed=31)["images"][0]
    answer = studio.http.post(f"/v1/images/{image['id']}/reproduce", headers={"Prefer": "wait=60"})
    assert answer.status_code in (200, 202), answer.text
    ended(studio, answer.json()["job"])
    answer = studio.http.post(answer.json()["links"]["again"], headers={"Prefer": "wait=60"})
    assert answer.status_code == 200, answer.text
    assert answer.json()["verdict"] == "identical"
    assert answer.json()["max_pixel_difference"] == 0


def test_a_prompt_longer_than_the_encoder_reads_is_told(studio: ApiProcess) -> None:
    job = generate(studio, prompt=PROMPT + ", " + "very " * 300 + "beautiful", seed=1)
    [warning] = [w for w in job["warnings"] if w["code"] == "prompt_truncated"]
    assert "beautiful" in warning["message"]
