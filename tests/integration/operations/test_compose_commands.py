"""Every command of deploy/compose.yaml, run with its own variables, to an image and to the end."""

import re
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import httpx2
import psycopg
import pytest

from deploy.local.servers import EmbeddedServers
from tests.integration.operations.composed import ComposedStack

pytestmark = pytest.mark.long


@pytest.fixture(scope="module")
def stack(
    servers: EmbeddedServers, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[ComposedStack]:
    """Servers and one-shots done: what the API's `depends_on` waits for."""
    with ComposedStack(servers, tmp_path_factory.mktemp("composed")) as composed:
        composed.prepare_database()
        composed.prepare_database()  # an administrator may run it twice
        composed.start_servers()
        composed.run("migrate")
        yield composed


def test_from_nothing_to_an_image(stack: ComposedStack) -> None:
    assert "bucket darkroom: made" in stack.run("bootstrap")
    again = stack.run("bootstrap")
    assert "made" not in again
    assert "key of the tenant studio: registered" in again

    workers = [stack.start("cpu-worker"), stack.start("generate-worker-cpu")]
    api = stack.start("api")
    stack.wait_healthy("api", "cpu-worker", "generate-worker-cpu")
    headers = {"Authorization": f"Bearer {stack.api_key}", "Prefer": "wait=60"}
    with httpx2.Client(base_url=stack.url, timeout=70, trust_env=False) as client:
        answer = client.post("/v1/jobs", json={"prompt": "a lighthouse"}, headers=headers)
        assert answer.status_code in (200, 202), answer.text
        job = answer.json()
        assert job["state"] == "succeeded", job
        image = client.get(job["images"][0]["url"])
        assert image.content.startswith(b"\x89PNG")
        assert client.get("/metrics").status_code in (401, 403, 404)

    for process in (*workers, api):
        process.send(signal.SIGTERM)
    for process in (*workers, api):
        begun = time.monotonic()
        assert process.stop(30) in (0, -signal.SIGTERM), process.tail()
        assert time.monotonic() - begun < 30


def test_the_api_runs_without_the_right_to_make_roles(stack: ComposedStack) -> None:
    url = re.sub(r"\+psycopg", "", stack.environment("api")["DARKROOM_DATABASE_URL"])
    with psycopg.connect(url) as connection:
        row = connection.execute(
            "SELECT rolsuper, rolcreaterole, rolbypassrls, pg_has_role('darkroom_api', 'MEMBER')"
            " FROM pg_roles WHERE rolname = current_user"
        ).fetchone()
    assert row == (False, False, False, True)


def test_secrets_stay_out_of_command_lines(stack: ComposedStack) -> None:
    secrets = {path.read_text("utf-8").strip() for path in stack.secrets.iterdir()}
    for commands in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            line = commands.read_bytes().decode("utf-8", "replace")
        except OSError:
            continue
        assert not any(secret in line for secret in secrets), line
