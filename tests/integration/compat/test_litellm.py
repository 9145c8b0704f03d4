"""OpenAI's image API, as LiteLLM uses it.

Its pins differ from ours, so it lives in an environment of its own. `LITELLM_PYTHON` names that
environment's interpreter; without one, and without LiteLLM beside us, these tests are skipped.
"""

import base64
import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import openai
import pytest

from tests.images import encode, mandelbrot
from tests.processes import ApiProcess, WorkerProcess, free_port, wait_until

pytestmark = pytest.mark.long

_PYTHON = os.environ.get("LITELLM_PYTHON", sys.executable)
_ENVIRONMENT = {
    **{name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ},
    "LITELLM_LOCAL_MODEL_COST_MAP": "True",
    "NO_PROXY": "*",
}
_CALL = """
import asyncio, io, json, os, sys
import litellm

call = json.load(sys.stdin)
arguments = call["arguments"] | {"api_base": call["base"], "api_key": call["key"]}
if "image" in arguments:
    image = io.BytesIO(bytes.fromhex(arguments["image"]))
    image.name = "a.png"
    arguments["image"] = [image]
try:
    if call["kind"] == "router":
        model = {"model": arguments.pop("model")}
        for name in ("api_base", "api_key"):
            model[name] = arguments.pop(name)
        router = litellm.Router([{"model_name": "darkroom", "litellm_params": model}])
        answer = router.image_generation(model="darkroom", **arguments)
    elif call["kind"].startswith("a"):
        answer = asyncio.run(getattr(litellm, call["kind"])(**arguments))
    else:
        answer = getattr(litellm, call["kind"])(**arguments)
    print(json.dumps(answer.model_dump(mode="json")))
except Exception as error:
    print(json.dumps({"raised": type(error).__name__, "text": str(error)}))
"""


@pytest.fixture(autouse=True, scope="module")
def installed() -> None:
    found = subprocess.run([_PYTHON, "-c", "import litellm"], capture_output=True, check=False)
    if found.returncode:
        pytest.skip("LiteLLM is not installed; see LITELLM_PYTHON")


def call(api: ApiProcess, kind: str, **arguments: Any) -> dict[str, Any]:
    """What LiteLLM's function of this name returns, or how it fails."""
    given = {"kind": kind, "arguments": arguments, "base": f"{api.url}/openai/v1", "key": api.key}
    done = subprocess.run(
        [_PYTHON, "-c", _CALL],
        input=json.dumps(given),
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
        env=_ENVIRONMENT,
    )
    answer: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return answer


@pytest.mark.parametrize("kind", ["image_generation", "aimage_generation", "router"])
def test_images(api: ApiProcess, generate_worker: WorkerProcess, kind: str) -> None:
    answer = call(
        api,
        kind,
        model="openai/dall-e-3",
        prompt="a light circle",
        n=2,
        size="128x64",
        seed=41,
        negative_prompt="blue",
    )
    assert "raised" not in answer, answer
    files = [base64.b64decode(one["b64_json"]) for one in answer["data"]]
    jobs = api.http.get("/v1/jobs", params={"limit": 20}).json()["data"]
    job = next(one for one in jobs if one["prompt"] == "a light circle")
    assert (job["seeds"], job["negative_prompt"], job["width"]) == ([41, 42], "blue", 128)
    assert [hashlib.sha256(file).hexdigest() for file in files] == [
        image["sha256"] for image in job["images"]
    ]
    assert answer["size"] == "128x64"


def test_an_edit(api: ApiProcess, generate_worker: WorkerProcess) -> None:
    image = encode(mandelbrot()).hex()
    answer = call(
        api, "image_edit", model="openai/gpt-image-1", prompt="a light change", image=image
    )
    assert "raised" not in answer, answer
    assert len(answer["data"]) == 1
    jobs = api.http.get("/v1/jobs", params={"limit": 20}).json()["data"]
    assert next(one for one in jobs if one["prompt"] == "a light change")["kind"] == "img2img"


def test_an_error_keeps_its_class(api: ApiProcess) -> None:
    refused = call(api, "image_generation", model="openai/midjourney", prompt="a cat")
    assert refused["raised"] == "NotFoundError"
    assert "midjourney" in refused["text"]


@pytest.fixture(scope="module")
def proxy(
    api: ApiProcess, generate_worker: WorkerProcess, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[openai.OpenAI]:
    """OpenAI's client of LiteLLM's proxy, a program in front of the API."""
    program = Path(_PYTHON).with_name("litellm")
    if subprocess.run([_PYTHON, "-c", "import litellm.proxy.proxy_cli"], check=False).returncode:
        pytest.skip("LiteLLM is installed without its proxy")
    folder, port = tmp_path_factory.mktemp("proxy"), free_port()
    models = {"openai": ("openai/dall-e-3", "/openai/v1"), "vllm": ("hosted_vllm/sim", "/v1")}
    config = [
        {
            "model_name": name,
            "litellm_params": {"model": model, "api_base": api.url + path, "api_key": api.key},
        }
        for name, (model, path) in models.items()
    ]
    (folder / "config.yaml").write_text(json.dumps({"model_list": config}))
    with (folder / "log").open("wb") as log:
        running = subprocess.Popen(
            [program, "--config", folder / "config.yaml", "--port", str(port)],
            stdout=log,
            stderr=log,
            env=_ENVIRONMENT | {"LITELLM_MASTER_KEY": "sk-proxy"},
        )
    url = f"http://127.0.0.1:{port}"

    def is_up() -> bool:
        assert running.poll() is None, (folder / "log").read_text()
        try:
            return httpx2.get(f"{url}/health/liveliness", trust_env=False).is_success
        except httpx2.TransportError:
            return False

    try:
        wait_until(is_up, 60, "LiteLLM's proxy")
        with openai.OpenAI(base_url=f"{url}/v1", api_key="sk-proxy", max_retries=0) as client:
            yield client
    finally:
        running.terminate()
        running.wait(30)


@pytest.mark.parametrize("model", ["openai", "vllm"])
def test_the_proxy(api: ApiProcess, proxy: openai.OpenAI, model: str) -> None:
    prompt = f"a circle by {model}'s proxy"
    made = proxy.images.generate(model=model, prompt=prompt, extra_body={"seed": 4, "steps": 2})
    assert made.data is not None
    file = base64.b64decode(made.data[0].b64_json or "")
    jobs = api.http.get("/v1/jobs", params={"limit": 20}).json()["data"]
    [job] = [one for one in jobs if one["prompt"] == prompt]
    assert (job["seeds"], job["steps"]) == ([4], 2)
    [image] = job["images"]
    assert hashlib.sha256(file).hexdigest() == image["sha256"]
    again = api.http.post(f"/v1/images/{image['id']}/reproduce", headers={"Prefer": "wait=60"})
    assert again.json()["verdict"] == "identical"
    changed = proxy.images.edit(
        model=model, prompt=f"{prompt}, at night", image=("a.png", encode(mandelbrot()))
    )
    assert changed.data is not None
    assert changed.data[0].b64_json
    with pytest.raises(openai.BadRequestError, match="pixels"):
        proxy.images.generate(model=model, prompt=prompt, size="4096x4096")
