"""Images that a filter refuses: charged and on record, and nowhere else."""

import json
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import httpx2
import psutil
import pytest
from sqlalchemy import select
from sqlalchemy.orm import Session, sessionmaker

import darkroom
from shared.core.storage import Storage
from shared.images.models import Prompt
from shared.jobs.models import DeviceTime
from tests.filters import build_checker
from tests.processes import ApiProcess, WorkerProcess, free_port, wait_until
from tests.receiver import Receiver
from tests.toy_models import save_toy

pytestmark = pytest.mark.usefixtures("filtered_worker")


def run(api: ApiProcess, prompt: str, **fields: Any) -> dict[str, Any]:
    body = {"prompt": prompt, "seed": 7, "session_id": "seen", **fields}
    headers = {"Prefer": "wait=60"}
    answer = api.http.post("/v1/jobs", json=body, headers=headers)
    assert answer.status_code == 202, answer.text
    job: dict[str, Any] = answer.json()
    assert job["finished_at"], job
    return job


def events_of(http: httpx2.Client, job_id: str) -> list[tuple[str, dict[str, Any]]]:
    with http.stream("GET", f"/v1/jobs/{job_id}/events") as answer:
        answer.read()
    events = []
    for block in answer.text.split("\n\n"):
        fields = dict(line.split(": ", 1) for line in block.splitlines() if ": " in line)
        if "data" in fields:
            events.append((fields["event"], json.loads(fields["data"])))
    return events


def test_a_refused_image_among_others(
    filtered_api: ApiProcess, cpu_worker: WorkerProcess, storage: Storage
) -> None:
    http = filtered_api.http
    with Receiver() as receiver:
        webhook = {"url": f"{receiver.url}/w", "events": ["job.succeeded"]}
        job = run(
            filtered_api,
            "refuse images 0,2 of four",
            num_images=4,
            previews=True,
            webhook=webhook,
        )
        wait_until(lambda: receiver.received, 30, "the webhook")
        told = receiver.received[0].message["data"]["images"]
    assert job["state"] == "succeeded"
    refused = {
        "state": "filtered",
        "index": 0,
        "seed": 7,
        "filter": "obedient",
        "reason": "Image 0 it is.",
    }
    assert job["images"][0] == refused
    states = ["filtered", "ready", "filtered", "ready"]
    assert [image["state"] for image in job["images"]] == states
    assert [image["state"] for image in told] == states
    assert told[0] == refused
    assert [image["seed"] for image in job["images"]] == [7, 8, 9, 10]
    [warning] = [one for one in job["warnings"] if one["code"] == "images_filtered"]
    assert warning["message"].startswith("2 of 4 images were refused by a filter.")
    # No file, no row: lists have the others only.
    keys = storage.list_keys(f"seen/{job['id']}/")
    assert sorted(key.rpartition("/")[2] for key in keys) == [
        *("01.png", "01.thumb.webp", "03.png", "03.thumb.webp")
    ]
    ready = [image["id"] for image in job["images"] if image["state"] == "ready"]
    assert [one["id"] for one in http.get(f"/v1/jobs/{job['id']}/images").json()["data"]] == ready
    found = http.get("/v1/sessions/seen/images", params={"q": "refuse images"}).json()["data"]
    assert {one["id"] for one in found if one["job_id"] == job["id"]} == set(ready)
    # All four have been paid for.
    images = [http.get(f"/v1/images/{one}").json() for one in ready]
    assert job["metrics"]["gpu_seconds"] > sum(one["gpu_seconds"] for one in images)
    # Previews would have shown what is refused.
    assert "preview" not in [kind for kind, _ in events_of(http, job["id"])]


def test_the_client_keeps_refused_images_apart(
    filtered_api: ApiProcess, filtered_worker: WorkerProcess
) -> None:
    made = []
    with darkroom.Client(filtered_api.url, filtered_api.key) as client, ExitStack() as beginning:
        beginning.enter_context(filtered_worker.frozen())  # until the events are followed
        handle = client.jobs.submit("refuse images 1 for the client", num_images=2)
        for event in client.jobs.events(handle):
            beginning.close()
            if isinstance(event, darkroom.ImageMade):
                made.append((event.image_index, event.image_id is None))
        job = client.jobs.wait(handle)
        assert [image.index for image in job.images] == [0]
        [refused] = job.images.filtered
        assert (refused.index, refused.filter) == (1, "obedient")
        assert refused.raw["state"] == "filtered"
        assert len(client.jobs.image_handles(job)) == 1
        assert made == [(0, False), (1, True)]


def test_a_job_fails_only_if_all_its_images_are_refused(
    filtered_api: ApiProcess, storage: Storage, database: sessionmaker[Session], api_key: str
) -> None:
    key_id = api_key.split("_")[1]

    def charged() -> float:
        with database() as session:
            statement = select(DeviceTime.gpu_seconds).where(DeviceTime.api_key_id == key_id)
            return sum(session.scalars(statement))

    before = charged()
    text = "refuse images 0,1 of two"
    job = run(filtered_api, text, num_images=2)
    assert job["state"] == "failed"
    assert job["error"]["code"] == "filtered"
    assert job["error"]["message"].startswith("2 of 2 images were refused by a filter.")
    assert [image["state"] for image in job["images"]] == ["filtered", "filtered"]
    assert len(job["attempts"]) == 1
    assert job["metrics"]["gpu_seconds"] > 0
    assert charged() - before >= job["metrics"]["gpu_seconds"] - 1e-6
    assert storage.list_keys(f"seen/{job['id']}/") == []
    with database() as session:
        assert not session.scalars(select(Prompt).where(Prompt.text == text)).all()
    # Tried again, it has nothing of before; the toy counts on and refuses no third image.
    again = filtered_api.http.post(f"/v1/jobs/{job['id']}/retry").json()
    assert (again["images"], again["error"]) == ([], None)
    done = filtered_api.http.get(f"/v1/jobs/{job['id']}", headers={"Prefer": "wait=60"}).json()
    assert [image["state"] for image in done["images"]] == ["ready", "ready"]


def test_other_peoples_apis_tell_of_refused_images(filtered_api: ApiProcess) -> None:
    http = filtered_api.http
    some = http.post(
        "/openai/v1/images/generations", json={"prompt": "refuse images 0 openai", "n": 2}
    )
    assert (some.status_code, len(some.json()["data"])) == (200, 1)
    none = http.post("/openai/v1/images/generations", json={"prompt": "refuse image openai"})
    assert none.status_code == 400
    assert none.json()["error"]["code"] == "content_policy_violation"
    a1111 = http.post("/sdapi/v1/txt2img", json={"prompt": "refuse images 0 web", "batch_size": 2})
    assert (a1111.status_code, len(a1111.json()["images"])) == (200, 1)
    hub = http.post("/hf", json={"inputs": "refuse images 0 hub", "parameters": {"num_images": 2}})
    assert (hub.status_code, hub.headers["content-type"]) == (200, "image/png")
    hub = http.post("/hf", json={"inputs": "refuse image hub"})
    assert (hub.status_code, hub.json()["code"]) == (422, "refused_by_filter")


def test_a_marked_image_says_so(filtered_api: ApiProcess) -> None:
    job = run(filtered_api, "mark image, please")
    [image] = job["images"]
    assert image["marks"] == [{"filter": "obedient", "reason": "The image asks for it."}]
    receipt = filtered_api.http.get(f"/v1/images/{image['id']}/receipt").json()
    assert receipt["marks"] == image["marks"]
    file = httpx2.get(image["url"]).content
    assert b"The image asks for it." in file


@pytest.mark.long
def test_a_filter_that_hangs_costs_an_attempt(
    filtered_api: ApiProcess, cpu_worker: WorkerProcess, tmp_path: Path
) -> None:
    job = run(filtered_api, f"hang image once {tmp_path / 'hung'}")
    assert job["state"] == "succeeded"
    first, second = job["attempts"]
    assert first["error"]["code"] == "filter_unavailable"
    assert second["outcome"] == "succeeded"


@pytest.mark.long
def test_no_image_is_made_while_filters_cannot_come_back(
    filtered_api: ApiProcess, filtered_worker: WorkerProcess, denied: Path
) -> None:
    http, gone = filtered_api.http, denied.with_name("gone")
    gone.touch()
    try:
        [filters] = psutil.Process(filtered_worker.child.pid).children()
        filters.kill()
        path = f"/v1/jobs/{http.post('/v1/jobs', json={'prompt': 'a house'}).json()['id']}"
        wait_until(
            lambda: "its files are gone" in filtered_worker.log.read_text(), 60, "a failed start"
        )
        assert http.get(path).json()["state"] == "running"
    finally:
        gone.unlink()
    done = http.get(path, headers={"Prefer": "wait=60"}).json()
    assert done["state"] == "succeeded"
    assert len(done["attempts"]) == 1


@pytest.mark.long
def test_a_worker_that_dies_while_a_filter_looks(
    filtered_environment: dict[str, str],
    filtered_api: ApiProcess,
    filtered_worker: WorkerProcess,
    cpu_worker: WorkerProcess,
    tmp_path: Path,
) -> None:
    """The filters end with it, and the image is made, and looked at, again."""
    environment = filtered_environment | {"DARKROOM_FILTER_DEADLINE": "PT1M"}
    hung = tmp_path / "hung"
    process = WorkerProcess(environment, ["generate", "--model", "seen"], tmp_path / "second.log")
    filtered_worker.stop()
    try:
        with process:
            job = filtered_api.http.post("/v1/jobs", json={"prompt": f"hang image once {hung}"})
            wait_until(hung.exists, 60, "the image at the filter")
            [filters] = psutil.Process(process.child.pid).children()
            process.kill()
            wait_until(lambda: not filters.is_running(), 20, "the end of the filters")
    finally:
        filtered_worker.start()
        filtered_worker.wait_ready()
    path = f"/v1/jobs/{job.json()['id']}"
    wait_until(lambda: filtered_api.http.get(path).json()["finished_at"], 90, "the second attempt")
    done = filtered_api.http.get(path).json()
    assert done["state"] == "succeeded"
    assert [one["outcome"] for one in done["attempts"]] == ["lost", "succeeded"]


@pytest.mark.long
def test_a_worker_whose_filters_cannot_be_loaded_takes_no_work(
    filtered_environment: dict[str, str], tmp_path: Path
) -> None:
    for names, said in (("broken", "no such luck"), ("no-such", "no filter is called 'no-such'")):
        environment = filtered_environment | {"DARKROOM_FILTERS": names}
        log = tmp_path / f"{names}.log"
        process = WorkerProcess(environment, ["generate", "--model", "seen"], log)
        process.start()
        assert process.child.wait(120) == 78
        assert said in log.read_text()
    api = ApiProcess(
        filtered_environment | {"DARKROOM_FILTERS": "no-such"}, free_port(), "x", tmp_path / "api"
    )
    api.start()
    assert api.child.wait(120) != 0
    assert "no filter is called 'no-such'" in (tmp_path / "api").read_text()


@pytest.mark.long
def test_a_worker_asks_the_safety_checker_of_its_checkpoint(
    environment: dict[str, str], api_key: str, storage: Storage, tmp_path: Path
) -> None:
    for name, threshold in (("strict", -1.0), ("lax", 1.0)):
        save_toy("sd15", tmp_path / name)
        build_checker(tmp_path / name, threshold=threshold)
    (tmp_path / "models.toml").write_text(
        "".join(
            f'[[model]]\nname = "{name}"\nsource = "{tmp_path / name}"\nmax_batch_size = 1\n'
            "default_width = 64\ndefault_height = 64\ndefault_steps = 2\n"
            for name in ("strict", "lax")
        )
    )
    chosen = environment | {
        "DARKROOM_MODELS_FILE": str(tmp_path / "models.toml"),
        "DARKROOM_FILTERS": "safety_checker",
        "DARKROOM_FILTER_DEADLINE": "PT1M",
        "DARKROOM_DEVICE": "cpu",
    }
    arguments = ["generate", "--model", "strict", "--model", "lax"]
    with (
        ApiProcess(chosen, free_port(), api_key, tmp_path / "api.log") as api,
        WorkerProcess(chosen, arguments, tmp_path / "worker.log"),
    ):
        # The API's process has nothing to look at prompts with.
        children = psutil.Process(api.child.pid).children()
        assert not [one for one in children if "filter_process" in " ".join(one.cmdline())]
        passed = run(api, "a house", model="lax")
        assert [image["state"] for image in passed["images"]] == ["ready"]
        refused = run(api, "a house", model="strict")
    assert refused["error"]["code"] == "filtered"
    assert refused["images"][0]["filter"] == "safety_checker"
    assert storage.list_keys(f"seen/{refused['id']}/") == []
