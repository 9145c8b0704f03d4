"""Several models in one worker whose memory is for one: real toy checkpoints, and who gets what."""

from pathlib import Path
from typing import Any

import httpx2
import pytest
import redis

from shared.core import broker
from tests.integration.fleet.conftest import (
    Start,
    submit,
    wait_for_state,
    wait_succeeded,
    worker_of,
)
from tests.processes import wait_until

TOY = """
[[model]]
name = "{name}"
source = "{folder}"
max_batch_size = 1
default_width = 64
default_height = 64
default_steps = 2
cpu_threads = 1
"""
"""The number of threads is in the files; measured, it depends on what else the machine does."""
SIMULATED = """
[[model]]
name = "{name}"
source = "simulated:tick=0.002&row=0&memory=100&load=0.1"
max_batch_size = 2
default_width = 64
default_height = 64
default_steps = 4
"""


OPTIONS = {"model_memory": "100", "model_load_delay": "PT60S"}
"""Room for one of the simulated models, and no hurry."""


@pytest.fixture(scope="module")
def toys(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Two checkpoints of the same size and different weights."""
    from tests.toy_models import save_toy

    home = tmp_path_factory.mktemp("toys")
    folders = {"toy-a": home / "a", "toy-b": home / "b"}
    for seed, folder in enumerate(folders.values()):
        save_toy("sd15", folder, seed)
    return folders


@pytest.fixture(scope="module")
def own(
    environment: dict[str, str], toys: dict[str, Path], tmp_path_factory: pytest.TempPathFactory
) -> dict[str, str]:
    """The environment with a catalogue of the toys and of two simulated models."""
    catalogue = tmp_path_factory.mktemp("catalogue") / "models.toml"
    tables = [TOY.format(name=name, folder=folder) for name, folder in toys.items()]
    tables += [SIMULATED.format(name=name) for name in ("sim-a", "sim-b")]
    catalogue.write_text("".join(tables))
    return {
        **environment,
        "DARKROOM_MODELS_FILE": str(catalogue),
        "DARKROOM_HEARTBEAT": "PT3S",
        "DARKROOM_MODEL_STAY": "PT1S",
    }


def weights_of(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.glob("*/*.safetensors"))


def states(operator: httpx2.Client, name: str) -> dict[str, str]:
    """The states of a worker's models."""
    return {m["name"]: m["state"] for m in worker_of(operator, name).get("models", [])}


def shown(operator: httpx2.Client, name: str) -> dict[str, Any]:
    """A model as every tenant sees it."""
    models: list[dict[str, Any]] = operator.get("/v1/models").json()["data"]
    return next(model for model in models if model["name"] == name)


def states_for_all(operator: httpx2.Client, name: str) -> list[str]:
    """A model's state in each worker that serves it, as every tenant sees it."""
    return [worker["model_state"] for worker in shown(operator, name)["workers"]]


def image(operator: httpx2.Client, model: str, seed: int) -> tuple[str, dict[str, Any]]:
    """Have one made; the hash of its file, and its job."""
    job = wait_succeeded(operator, submit(operator, model=model, seed=seed), 90)
    (image,) = job["images"]
    return image["sha256"], job


@pytest.mark.long
def test_two_models_take_turns_in_the_memory_of_one_and_make_the_same_bytes(
    operator: httpx2.Client, start: Start, toys: dict[str, Path]
) -> None:
    alone = start("alone", "generate", "--model", "toy-a")
    expected, _ = image(operator, "toy-a", 7)
    (model,) = worker_of(operator, "alone")["models"]
    assert 0.9 < model["memory_bytes"] / weights_of(toys["toy-a"]) < 1.1
    alone.stop()
    limit = int(1.5 * model["memory_bytes"])
    both = ("generate", "--model", "toy-a", "--model", "toy-b")
    start("both", *both, model_memory=str(limit))
    first = {"toy-a": "warm", "toy-b": "cold"}
    wait_until(lambda: states(operator, "both") == first, 30, "the first model")
    made: dict[str, list[str]] = {"toy-a": [], "toy-b": []}
    for name in ("toy-a", "toy-b", "toy-a", "toy-b"):
        sha256, job = image(operator, name, 7)
        made[name].append(sha256)
        assert [attempt["worker"] for attempt in job["attempts"]] == ["both"]
        memory = worker_of(operator, "both")["memory"]
        assert 0 < memory["used"] <= memory["limit"] == limit
    assert made["toy-a"] == [expected, expected]
    assert made["toy-b"][0] == made["toy-b"][1] != expected
    # /v1/models may be two seconds old, and a quick machine has loaded a toy before that.
    wait_until(lambda: states_for_all(operator, "toy-a") == ["cold"], 10, "the news")
    assert shown(operator, "toy-a")["served"]


def test_jobs_wait_together_for_models_that_cannot_be_loaded_together(
    operator: httpx2.Client, start: Start
) -> None:
    start("left", "generate", "--model", "sim-a", "--model", "sim-b", **OPTIONS)
    wait_for_state(operator, "left", "ready")
    jobs = [submit(operator, model=name) for _ in range(10) for name in ("sim-a", "sim-b")]
    ended = [wait_succeeded(operator, job, 60) for job in jobs]
    assert [job["model"] for job in ended] == ["sim-a", "sim-b"] * 10
    assert {attempt["worker"] for job in ended for attempt in job["attempts"]} == {"left"}


def test_jobs_go_to_the_worker_that_holds_their_model_warm(
    operator: httpx2.Client, start: Start, redis_client: "redis.Redis"
) -> None:
    wait_succeeded(operator, submit(operator, model="sim-a"))
    right = start("right", "generate", "--model", "sim-b", "--model", "sim-a", **OPTIONS)
    wait_for_state(operator, "right", "ready")
    for model, holder in (("sim-a", "left"), ("sim-b", "right")):
        jobs = [submit(operator, model=model) for _ in range(6)]
        took = {wait_succeeded(operator, job)["attempts"][0]["worker"] for job in jobs}
        assert took == {holder}
    kept = {"sim-a": "warm", "sim-b": "cold"}
    wait_until(lambda: states(operator, "left") == kept, 30, "the models that it had")
    right.stop()
    # Who has loaded a model has the word for ten seconds, and this one was loaded a moment ago.
    redis_client.delete(broker.loading_key("sim-b"))
    job = wait_succeeded(operator, submit(operator, model="sim-b"))
    assert job["attempts"][0]["worker"] == "left"
    wait_until(
        lambda: states(operator, "left") == {"sim-a": "cold", "sim-b": "warm"}, 10, "the change"
    )
