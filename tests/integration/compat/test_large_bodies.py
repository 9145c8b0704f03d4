"""Requests with large images, each waiting for its job: the place of a large body is the next
one's as soon as its job is accepted."""

import json
import secrets
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx2
import pytest
from PIL import Image

from deploy.tenants import create_key
from shared.core.settings import Settings
from tests.images import data_url, encode
from tests.processes import ApiProcess, wait_until

MANY = 5
"""A key has two places for large bodies."""


@pytest.fixture
def own(api: ApiProcess, settings: Settings) -> Iterator[httpx2.Client]:
    url = settings.database_url.get_secret_value()
    key = create_key(url, tenant=f"large {secrets.token_hex(4)}", name="k", scopes=["jobs"])
    with api.client(key) as http:
        yield http


def noise() -> str:
    """Over 64 kB in base64."""
    pixels = secrets.token_bytes(3 * 256 * 256)
    return data_url(encode(Image.frombytes("RGB", (256, 256), pixels)))


PROMPT = "a large circle"
DOORS: dict[str, dict[str, Any]] = {
    "/v1/jobs": {"model": "unserved", "init_image": "IMAGE", "prompt": PROMPT},
    "/openai/v1/images/edits": {"model": "unserved", "image": "IMAGE", "prompt": PROMPT},
    "/sdapi/v1/img2img": {
        "override_settings": {"sd_model_checkpoint": "unserved"},
        "init_images": ["IMAGE"],
        "prompt": PROMPT,
    },
    "/hf": {"parameters": {"model": "unserved", "init_image": "IMAGE"}, "inputs": PROMPT},
    "/mcp": {
        "jsonrpc": "2.0",
        "id": 1,
        "method": "tools/call",
        "params": {
            "name": "edit_image",
            "arguments": {"model": "unserved", "image": "IMAGE", "prompt": PROMPT},
        },
    },
}


@pytest.mark.long
@pytest.mark.parametrize("path", DOORS)
def test_a_waiting_request_holds_no_large_bodys_place(path: str, own: httpx2.Client) -> None:
    def post(image: str) -> int:
        sent = json.dumps(DOORS[path]).replace('"IMAGE"', json.dumps(image))
        headers = {
            "Prefer": "wait=60",
            "Content-Type": "application/json",
            "Accept": "application/json, text/event-stream",
        }
        return own.post(path, content=sent, headers=headers, timeout=90).status_code

    def queued() -> list[dict[str, Any]]:
        jobs: list[dict[str, Any]] = own.get("/v1/jobs", params={"state": "queued"}).json()["data"]
        return jobs

    with ThreadPoolExecutor(MANY) as threads:
        answers = [threads.submit(post, noise()) for _ in range(MANY)]
        try:
            wait_until(lambda: len(queued()) == MANY, 25)
        finally:
            for job in queued():
                own.post(f"/v1/jobs/{job['id']}/cancel")
            assert {one.result(timeout=90) for one in answers} <= {200, 202, 409}
