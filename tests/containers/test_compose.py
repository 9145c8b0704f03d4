"""The images and the Compose file, run: to an image, past a killed worker, and out of a backup."""

import json
import os
from collections.abc import Iterator
from typing import Any

import httpx2
import pytest

from deploy.docker.images import NoBase, NoEngine, build
from tests.containers.engine import DARKROOM, SERVERS, Composition
from tests.processes import wait_until

pytestmark = pytest.mark.timeout(3600)

_LOOK = """
import json, socket
def reaches(host, port):
    try:
        socket.create_connection((host, port), 3).close()
        return True
    except OSError:
        return False
def writes(path):
    try:
        open(path, 'w').close()
        return True
    except OSError:
        return False
status = dict(line.split(':', 1) for line in open('/proc/1/status'))
names = ('Uid', 'CapEff', 'NoNewPrivs', 'Seccomp')
print(json.dumps({
    'rights': {name: status[name].split()[0] for name in names},
    'reaches': [h for h, p in (('postgres', 5432), ('redis', 6379), ('s3', 9000)) if reaches(h, p)],
    'writes': [path for path in ('/app/x', '/packages/x', '/spool/x', '/tmp/x') if writes(path)],
}))
"""


@pytest.fixture(scope="module")
def stack() -> Iterator[Composition]:
    """Images of this checkout, and everything started from empty volumes."""
    try:
        composition = Composition()
        images = list(build(composition.engine, os.environ))
    except (NoEngine, NoBase) as error:
        pytest.skip(f"Containers were not tried: {error}")
    assert len(images) == 5
    composition.close()  # what an interrupted run left
    try:
        composition.start()
        yield composition
    finally:
        composition.close()


@pytest.fixture
def http(stack: Composition) -> Iterator[httpx2.Client]:
    """The API, as the holder of the first key."""
    headers = {"Authorization": f"Bearer {stack.api_key}"}
    with httpx2.Client(
        base_url=stack.url, headers=headers, timeout=130, trust_env=False, follow_redirects=True
    ) as client:
        yield client


def submit(http: httpx2.Client, **wanted: Any) -> str:
    answer = http.post("/v1/jobs", json={"prompt": "a red circle", **wanted})
    assert answer.status_code == 202, answer.text
    return str(answer.json()["id"])


def finish(stack: Composition, http: httpx2.Client, job: str) -> dict[str, Any]:
    """Wait until a job has succeeded."""

    def ended() -> dict[str, Any] | None:
        found: dict[str, Any] = http.get(f"/v1/jobs/{job}").json()
        return found if found["state"] not in ("queued", "running") else None

    done: dict[str, Any] = wait_until(ended, 240, f"the end of {job}")
    assert done["state"] == "succeeded", f"{done}\n{stack.logs('generate-worker-cpu')}"
    return done


def content(http: httpx2.Client, job: dict[str, Any]) -> list[bytes]:
    """The bytes of its images, by the links that the store serves."""
    images = [http.get(f"/v1/images/{image['id']}/content") for image in job["images"]]
    assert all(image.status_code == 200 for image in images)
    assert all(image.content.startswith(b"\x89PNG") for image in images)
    return [image.content for image in images]


def test_the_stack_is_ready(stack: Composition, http: httpx2.Client) -> None:
    """Health checks passed at the start; what they say is so for those outside, too."""
    assert http.get("/readyz").json()["status"] == "ready"
    assert httpx2.get(f"{stack.playground}/_stcore/health", trust_env=False).status_code == 200
    for worker in ("cpu-worker", "generate-worker-cpu"):
        ready = (
            "import urllib.request as r; print(r.urlopen('http://127.0.0.1:9464/readyz').status)"
        )
        assert stack.execute(worker, "python", "-c", ready).strip() == "200"


@pytest.mark.parametrize("service", DARKROOM)
def test_a_container_may_do_no_more_than_it_needs(stack: Composition, service: str) -> None:
    seen = json.loads(stack.execute(service, "python", "-c", _LOOK))
    nothing = {"Uid": "10001", "CapEff": "0" * 16, "NoNewPrivs": "1", "Seccomp": "2"}
    assert seen["rights"] == nothing
    assert seen["writes"] == (["/spool/x", "/tmp/x"] if service == "api" else ["/tmp/x"])
    assert set(seen["reaches"]) == ({"s3"} if service == "playground" else set(SERVERS))


def test_an_image_is_made(stack: Composition, http: httpx2.Client) -> None:
    [image] = content(http, finish(stack, http, submit(http, seed=7)))
    again = content(http, finish(stack, http, submit(http, seed=7)))
    assert again == [image]


def test_a_killed_workers_jobs_are_finished(stack: Composition, http: httpx2.Client) -> None:
    jobs = [submit(http, seeds=[n, n + 1], steps=100) for n in range(6)]
    running = ("running", "succeeded")
    wait_until(lambda: http.get(f"/v1/jobs/{jobs[0]}").json()["state"] in running, 120, "a start")
    worker = stack.container("generate-worker-cpu")
    stack.ask("kill", "--signal=KILL", worker)
    stack.ask("start", worker)
    done = [finish(stack, http, job) for job in jobs]
    assert [len(job["images"]) for job in done] == [2] * len(jobs)
    assert any(len(job["attempts"]) == 2 for job in done), "it was killed when all was done"


def test_a_backup_fills_empty_servers(stack: Composition, http: httpx2.Client) -> None:
    job = finish(stack, http, submit(http, seed=11))
    image = content(http, job)
    saved = json.loads(stack.run("backup", "save", "/backups"))
    lost = submit(http, seed=12)  # after the backup
    finish(stack, http, lost)
    stack.remove("postgres-data", "redis-data", "s3-data")

    stack.start_servers()
    stack.compose("run", "--rm", "-T", "restore")  # with what it depends on, as it is documented
    compared = json.loads(stack.run("backup", "verify", "--read"))
    assert (compared["missing"], compared["different"]) == ([], [])
    assert compared["read"] == saved["objects"] / 2, "an image and its thumbnail"
    stack.start()
    kept = http.get(f"/v1/jobs/{job['id']}").json()
    assert content(http, kept) == image
    assert http.get(f"/v1/jobs/{lost}").status_code == 404
    finish(stack, http, submit(http, seed=13))


def test_everything_stops_when_asked(stack: Composition) -> None:
    """Exit status 137 would be that of one killed after its grace period."""
    for service in (*reversed(DARKROOM), *SERVERS):
        container = stack.container(service)
        stack.ask("stop", "--time=60", container)
        code = stack.ask("inspect", "--format={{.State.ExitCode}}", container).strip()
        assert code in ("0", "143"), f"{code}: {stack.logs(service)}"
