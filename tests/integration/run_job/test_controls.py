"""A real ControlNet from the request to the image, and damaged ones beside it."""

import shutil
from collections.abc import Iterator
from typing import Any

import httpx2
import pytest

from shared.core.settings import Settings
from tests.images import data_url, png
from tests.processes import ApiProcess, WorkerProcess, free_port
from tests.toy_models import build_controlnet, save_toy

CATALOGUE = """
[[model]]
name = "toy"
source = "toy"
default_width = 64
default_height = 64

[[controlnet]]
name = "edges"
source = "net"
family = "sd"

[[controlnet]]
name = "cut"
source = "cut"
family = "sd"

[[controlnet]]
name = "for-xl"
source = "xl"
family = "sd"
"""
RED = data_url(png("red", 96, 64))
BODY = {"prompt": "a lamp", "model": "toy", "seed": 3, "steps": 3}


@pytest.fixture(scope="module")
def http(
    settings: Settings,
    environment: dict[str, str],
    api_key: str,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[httpx2.Client]:
    """A client of an API whose toy model is served, with a ControlNet, half of one, and one that
    is declared for the wrong family."""
    home = tmp_path_factory.mktemp("toys")
    save_toy("sd15", home / "toy")
    build_controlnet(home / "net", home / "toy")
    shutil.copytree(home / "net", home / "cut")
    shutil.copytree(home / "net", home / "xl")
    (weights,) = (home / "cut").glob("*.safetensors")
    weights.write_bytes(weights.read_bytes()[:-100])
    config = home / "xl" / "config.json"
    config.write_text(config.read_text().replace('"cross_attention_dim": 32', '"in_channels": 4'))
    (home / "models.toml").write_text(CATALOGUE)
    changed = {**environment, "DARKROOM_MODELS_FILE": str(home / "models.toml")}
    with (
        ApiProcess(changed, free_port(), api_key, home / "api.log") as api,
        WorkerProcess(changed, ["generate"], home / "worker.log"),
    ):
        yield api.http


def make(http: httpx2.Client, *names: str, **fields: Any) -> dict[str, Any]:
    controls = [{"name": name, "image": RED} for name in names]
    body = {**BODY, "controls": controls, **fields}
    job: dict[str, Any] = http.post("/v1/jobs", json=body, headers={"Prefer": "wait=60"}).json()
    return job


@pytest.mark.long
def test_a_net_steers_the_image_which_can_be_made_again(http: httpx2.Client) -> None:
    plain, one, two = make(http), make(http, "edges"), make(http, "edges", "edges")
    made = [job["images"][0]["sha256"] for job in (plain, one, two)]
    assert len(set(made)) == 3
    image = one["images"][0]["id"]
    again = http.post(f"/v1/images/{image}/reproduce", headers={"Prefer": "wait=60"}).json()
    assert again["verdict"] == "identical", again["reason"]
    larger = make(http, "edges", hires={"scale": 1.5})
    assert larger["images"][0]["width"] == 96


@pytest.mark.long
@pytest.mark.parametrize("name", ["cut", "for-xl"])
def test_a_net_that_cannot_be_loaded_fails_its_own_job(http: httpx2.Client, name: str) -> None:
    beside = http.post("/v1/jobs", json={**BODY, "steps": 40}).json()
    job = make(http, name)
    assert (job["state"], job["error"]["code"]) == ("failed", "controlnet_unavailable"), job
    assert name in job["error"]["message"]
    done = http.get(f"/v1/jobs/{beside['id']}", headers={"Prefer": "wait=60"}).json()
    assert done["state"] == "succeeded"
