"""`make run` on the home of an earlier version, which was killed in the middle of its work."""

from collections.abc import Iterator
from typing import Any

import httpx2
import pytest

from deploy.local.servers import EmbeddedServers
from migrations.commands import upgrade
from tests import earlier_version
from tests.earlier_version import FACTS
from tests.processes import PROJECT, wait_until
from tests.stack import Stack, free_ports

SECONDS = 150.0
pytestmark = pytest.mark.long


@pytest.fixture(scope="module")
def upgraded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Stack, list[str]]]:
    """The upgraded stack, and jobs that were accepted while its database was being migrated."""
    folder = tmp_path_factory.mktemp("upgrade")
    home = folder / "home"
    earlier_version.unpack_home(home)
    with EmbeddedServers(home, durable=False) as servers:
        earlier_version.restore_database(servers.database_url)
        with earlier_version.submitting(servers.database_url) as accepted:
            wait_until(lambda: accepted, what="a job before the upgrade")
            upgrade(servers.database_url)
    models = str(PROJECT / "deploy" / "models.toml")
    run = Stack(home, folder / "output", "up", **free_ports(), DARKROOM_MODELS_FILE=models)
    try:
        run.wait_for("Darkroom is ready")
        yield run, accepted
    finally:
        run.end()


@pytest.fixture(scope="module")
def http(upgraded: tuple[Stack, list[str]]) -> Iterator[httpx2.Client]:
    """Its API, as the user of the local key."""
    with upgraded[0].api() as client:
        yield client


def get(http: httpx2.Client, path: str, **parameters: str | int) -> dict[str, Any]:
    answer = http.get(path, params=parameters)
    assert answer.status_code == 200, answer.text
    found: dict[str, Any] = answer.json()
    return found


def wait_for_state(http: httpx2.Client, path: str, *states: str) -> None:
    wait_until(lambda: get(http, path)["state"] in states, SECONDS, f"{states} of {path}")


@pytest.mark.timeout(400)
def test_work_that_waited_is_done(http: httpx2.Client) -> None:
    """The job whose worker died begins again; what waited follows it, in batches too."""
    running = f"/v1/jobs/{FACTS['running']}"
    wait_until(lambda: len(get(http, running)["attempts"]) == 2, SECONDS, "its second attempt")
    assert http.post(f"{running}/cancel").status_code in (200, 202)  # it is long
    wait_for_state(http, f"/v1/batches/{FACTS['waiting_batch']}", "succeeded")
    assert get(http, f"/v1/batches/{FACTS['paused_batch']}")["paused"] is True
    assert http.post(f"/v1/batches/{FACTS['paused_batch']}/resume").status_code == 200
    wait_for_state(http, f"/v1/batches/{FACTS['paused_batch']}", "succeeded")
    for job in (FACTS["idempotent"], FACTS["reproduction"]):
        wait_for_state(http, f"/v1/jobs/{job}", "succeeded")


@pytest.mark.timeout(400)
def test_jobs_accepted_during_the_migration_are_done(
    upgraded: tuple[Stack, list[str]], http: httpx2.Client
) -> None:
    _, accepted = upgraded
    for job in accepted:
        wait_for_state(http, f"/v1/jobs/{job}", "succeeded")
        assert len(get(http, f"/v1/jobs/{job}")["attempts"]) == 1


def test_images_are_read_found_and_made_again(http: httpx2.Client) -> None:
    image = FACTS["image"]
    content = http.get(f"/v1/images/{image}/content", params={"proxy": "1"})
    assert content.content == earlier_version.IMAGE.read_bytes()
    found = get(http, "/v1/search", q="green mountains", limit=50)["data"]
    assert image in {hit["image"]["id"] for hit in found}
    inspected = http.post("/v1/images/inspect", files={"file": ("a.png", content.content)})
    assert inspected.json()["receipt"]["receipt_version"] == 1
    again = http.post(f"/v1/images/{image}/reproduce", headers={"Prefer": "wait=60"}, timeout=90)
    # The demo model has other weights since; what the old receipt asks for is still done.
    assert again.json()["verdict"] == "different", again.text
    assert "checkpoint has changed" in again.json()["reason"]
    receipt = get(http, f"/v1/images/{again.json()['image']['id']}/receipt")
    settings = ("prompt", "seed", "width", "height", "steps", "guidance_scale")
    before = inspected.json()["receipt"]
    assert [receipt[name] for name in settings] == [before[name] for name in settings]
    assert receipt["batch_size"] == before["rows"]


def test_other_tenants_and_quotas_are_there(http: httpx2.Client) -> None:
    keys = FACTS["keys"]
    theirs = {"Authorization": f"Bearer {keys['team-b']}"}
    assert http.get(f"/v1/images/{FACTS['image']}", headers=theirs).status_code == 404
    [job] = http.get("/v1/jobs", headers=theirs).json()["data"]
    assert job["state"] == "succeeded"
    limited = {"Authorization": f"Bearer {keys['limited']}"}
    refused = {"prompt": "too large", "width": 512, "height": 512}
    answer = http.post("/v1/jobs", headers=limited, json=refused)
    assert answer.status_code in (403, 422, 429), answer.text
    webhooks = get(http, "/v1/webhook-endpoints")["data"]
    assert {endpoint["description"] for endpoint in webhooks} >= {"good", "later"}
