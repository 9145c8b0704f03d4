"""An API whose catalogue has the models of these tests, the operator's client, and workers."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import httpx2
import pytest

from deploy.tenants import create_key
from shared.core.settings import Settings
from shared.core.tenants import OPERATOR, RESOURCES
from tests.processes import PATIENT, ApiProcess, WorkerProcess, free_port, wait_until

Start = Callable[..., WorkerProcess]


@pytest.fixture(scope="module")
def own(environment: dict[str, str]) -> dict[str, str]:
    """The environment with these tests' catalogue and quick heartbeats."""
    return {
        **environment,
        "DARKROOM_MODELS_FILE": str(Path(__file__).with_name("models.toml")),
        "DARKROOM_HEARTBEAT": "PT3S",
    }


@pytest.fixture(scope="module")
def operator(
    own: dict[str, str], settings: Settings, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[httpx2.Client]:
    """A client of the API with the operator's key."""
    url = own["DARKROOM_DATABASE_URL"]
    key = create_key(url, tenant="fleet", name="operator", scopes=[*RESOURCES, OPERATOR])
    log = tmp_path_factory.mktemp("fleet") / "api.log"
    with ApiProcess(own, free_port(), key, log, factory=PATIENT) as api:
        yield api.http


@pytest.fixture(params=[RESOURCES, ["admin:read"]], ids=["tenant", "reader"])
def outsider(request: pytest.FixtureRequest, settings: Settings) -> dict[str, str]:
    """The header of a key that is not the operator's."""
    url = settings.database_url.get_secret_value()
    key = create_key(url, tenant="curious", name="curious", scopes=request.param)
    return {"Authorization": f"Bearer {key}"}


@pytest.fixture(scope="module")
def start(own: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Start]:
    """Start a worker of this name and wait until it is ready; it is stopped with the module."""
    started: list[WorkerProcess] = []
    with ExitStack() as running:

        def begin(name: str, *arguments: str, **settings: str) -> WorkerProcess:
            environment = {**own, "DARKROOM_WORKER_NAME": name}
            environment |= {f"DARKROOM_{key.upper()}": value for key, value in settings.items()}
            log = tmp_path_factory.mktemp(name) / "worker.log"
            started.append(WorkerProcess(environment, arguments, log))
            return running.enter_context(started[-1])

        yield begin
        for worker in started:  # they end side by side
            worker.child.terminate()


def worker_of(operator: httpx2.Client, name: str) -> dict[str, Any]:
    """A worker as the API shows it; an empty dict if it has none of this name."""
    answer = operator.get(f"/v1/workers/{name}")
    found: dict[str, Any] = answer.json() if answer.status_code == 200 else {}
    return found


def wait_for_state(operator: httpx2.Client, name: str, *states: str) -> dict[str, Any]:
    """Wait until the worker is in one of these states, and return it."""

    def found() -> dict[str, Any] | None:
        worker = worker_of(operator, name)
        return worker if worker.get("state") in states else None

    there: dict[str, Any] = wait_until(found, 30, f"{name} in {states}")
    return there


def drained(operator: httpx2.Client, name: str) -> dict[str, Any]:
    """Wait until nothing is in the hands of a draining worker, and its next heartbeat says so."""

    def looked() -> dict[str, Any] | None:
        worker = worker_of(operator, name)
        is_drained = worker["drain"]["drained_at"] and worker["state"] == "draining"
        return worker if is_drained and not worker["jobs"] else None

    worker: dict[str, Any] = wait_until(looked, 30, "empty hands")
    return worker


def submit(operator: httpx2.Client, **fields: Any) -> str:
    """Submit a job; its id."""
    answer = operator.post("/v1/jobs", json={"prompt": "a red circle", **fields})
    assert answer.status_code == 202, answer.text
    job_id: str = answer.json()["id"]
    return job_id


def job_of(operator: httpx2.Client, job_id: str) -> dict[str, Any]:
    """A job as it is now."""
    job: dict[str, Any] = operator.get(f"/v1/jobs/{job_id}").json()
    return job


def wait_succeeded(operator: httpx2.Client, job_id: str, seconds: float = 30) -> dict[str, Any]:
    """Wait until the job has succeeded."""

    def ended() -> dict[str, Any] | None:
        job = job_of(operator, job_id)
        assert job["state"] in ("queued", "running", "succeeded"), job["error"]
        return job if job["state"] == "succeeded" else None

    job: dict[str, Any] = wait_until(ended, seconds, "the job's success")
    return job
