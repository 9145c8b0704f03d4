"""Each door's job is an ordinary job: in history and search, with its seed, and made again."""

import asyncio
from collections.abc import Callable

import httpx2
import mcp
import openai
import pytest
import webuiapi
from huggingface_hub import InferenceClient
from mcp.client.streamable_http import streamable_http_client

from tests.processes import ApiProcess, WorkerProcess

SEED = 4711


def by_openai(api: ApiProcess, prompt: str) -> None:
    with openai.OpenAI(base_url=f"{api.url}/openai/v1", api_key=api.key) as client:
        client.images.generate(prompt=prompt, extra_body={"seed": SEED})


def by_web_ui(api: ApiProcess, prompt: str) -> None:
    ui = webuiapi.WebUIApi(baseurl=f"{api.url}/sdapi/v1", username="x", password=api.key)
    ui.txt2img(prompt=prompt, seed=SEED, width=64, height=64, steps=4)


def by_hugging_face(api: ApiProcess, prompt: str) -> None:
    client = InferenceClient(base_url=f"{api.url}/hf", api_key=api.key)
    client.text_to_image(prompt, seed=SEED)


def by_mcp(api: ApiProcess, prompt: str) -> None:
    async def generate() -> None:
        headers = {"Authorization": f"Bearer {api.key}"}
        async with httpx2.AsyncClient(headers=headers, timeout=60, trust_env=False) as http:
            transport = streamable_http_client(f"{api.url}/mcp", http_client=http)
            async with mcp.Client(transport) as client:
                made = await client.call_tool("generate_image", {"prompt": prompt, "seed": SEED})
                assert not made.is_error, made.content

    asyncio.run(generate())


@pytest.mark.parametrize("make", [by_openai, by_web_ui, by_hugging_face, by_mcp])
def test_it_is_on_record_found_and_made_again(
    api: ApiProcess,
    generate_worker: WorkerProcess,
    cpu_worker: WorkerProcess,
    make: Callable[[ApiProcess, str], None],
) -> None:
    prompt = f"an ordinary lighthouse {make.__name__}"
    make(api, prompt)
    listed = api.http.get("/v1/jobs", params={"limit": 20}).json()["data"]
    [job] = [one for one in listed if one["prompt"] == prompt]
    assert (job["state"], job["seeds"]) == ("succeeded", [SEED])
    [image] = job["images"]
    hits = api.http.get("/v1/search", params={"q": prompt}).json()["data"]
    assert image["id"] in [hit["image"]["id"] for hit in hits]
    receipt = api.http.get(f"/v1/images/{image['id']}/receipt").json()
    assert (receipt["prompt"], receipt["seed"]) == (prompt, SEED)
    again = api.http.post(f"/v1/images/{image['id']}/reproduce", headers={"Prefer": "wait=60"})
    assert again.json()["verdict"] == "identical"
