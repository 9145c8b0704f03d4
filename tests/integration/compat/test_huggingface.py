"""Hugging Face's text_to_image, as its real client asks for it."""

import hashlib
from pathlib import Path

import pytest
from huggingface_hub import InferenceClient
from huggingface_hub.errors import HfHubHTTPError

from tests.processes import PATIENT, ApiProcess, WorkerProcess, free_port


def client_of(api: ApiProcess, key: str | None = None) -> InferenceClient:
    return InferenceClient(base_url=f"{api.url}/hf", api_key=key or api.key)


def test_an_image(api: ApiProcess, generate_worker: WorkerProcess) -> None:
    image = client_of(api).text_to_image(
        "a hub's red circle",
        negative_prompt="blue",
        width=128,
        height=64,
        num_inference_steps=3,
        guidance_scale=4.5,
        seed=9,
        extra_body={"session_id": "hub"},
    )
    assert (image.format, image.size) == ("PNG", (128, 64))
    [job] = api.http.get("/v1/jobs", params={"session_id": "hub"}).json()["data"]
    assert (job["prompt"], job["negative_prompt"]) == ("a hub's red circle", "blue")
    assert (job["seeds"], job["steps"], job["guidance_scale"]) == ([9], 3, 4.5)
    parameters = {"model": "sim", "output_format": "webp"}
    again = api.http.post("/hf", json={"inputs": "a hub's red circle", "parameters": parameters})
    assert again.status_code == 200
    made = api.http.get(again.headers["location"]).json()
    assert made["images"][0]["sha256"] == hashlib.sha256(again.content).hexdigest()
    assert again.headers["content-type"] == "image/webp"


def test_refusals(api: ApiProcess, generate_worker: WorkerProcess, other_api_key: str) -> None:
    api.http.post("/hf", json={"inputs": "a first circle"})
    for key, parameters, status in (
        ("drk_wrong", {}, 401),
        (None, {"wdith": 3}, 422),
        (None, {"model": "no-model"}, 422),
    ):
        with pytest.raises(HfHubHTTPError) as refused:
            client_of(api, key).text_to_image("a circle", extra_body=parameters)
        assert refused.value.response.status_code == status
    image = api.http.get("/v1/search").json()["data"][0]["image"]["id"]
    with pytest.raises(HfHubHTTPError) as refused:
        client_of(api, other_api_key).text_to_image("theirs", extra_body={"init_image": image})
    assert refused.value.response.status_code == 404
    for body in ({}, {"inputs": ""}, {"inputs": 3}, {"inputs": "x", "parameters": 3}):
        assert api.http.post("/hf", json=body).status_code == 422


def test_it_can_be_turned_off(environment: dict[str, str], api_key: str, tmp_path: Path) -> None:
    off = environment | {"DARKROOM_COMPAT_HUGGINGFACE": "false"}
    with ApiProcess(off, free_port(), api_key, tmp_path / "api.log", factory=PATIENT) as without:
        assert without.http.post("/hf", json={"inputs": "x"}).status_code == 404
