"""The receivers of docs/webhooks.md, run as they stand there."""

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import httpx2
import pytest

from shared.webhooks.message import SigningKey, new_secret, secret_text, signed_headers
from tests.processes import free_port, wait_until

DOCS = Path(__file__).resolve().parents[3] / "docs" / "webhooks.md"
BODY = b'{"id":"evt_1","type":"job.succeeded","data":{"id":"job_1"}}'
SECRET = new_secret()


def block(language: str) -> str:
    """The one code block of a language in the page."""
    [code] = re.findall(rf"```{language}\n(.*?)```", DOCS.read_text("utf-8"), re.DOTALL)
    return str(code)


def node() -> str:
    """Node with the package, or no test."""
    found = shutil.which("node")
    if found is None:
        pytest.skip("node is not installed")
    probe = [found, "-e", 'require("standardwebhooks")']
    if subprocess.run(probe, check=False, capture_output=True).returncode != 0:
        pytest.skip("node has no package standardwebhooks; set NODE_PATH to where it is installed")
    return found


@pytest.fixture(params=["python", "js"])
def receiver(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[str, Path]]:
    """A running receiver: its URL, and where its output goes."""
    port = free_port()
    if request.param == "python":
        (tmp_path / "receiver.py").write_text(block("python"))
        command = [
            *(sys.executable, "-m", "uvicorn", "receiver:app"),
            *("--port", str(port), "--log-level", "warning"),
        ]
    else:
        command = [node(), "receiver.cjs"]
        (tmp_path / "receiver.cjs").write_text(block("js"))
    environment = {
        **os.environ,
        "DARKROOM_WEBHOOK_SECRET": secret_text(SECRET),
        "PORT": str(port),
        "PYTHONUNBUFFERED": "1",
    }
    output = tmp_path / "output"
    with output.open("wb") as log:
        child = subprocess.Popen(
            command, cwd=tmp_path, env=environment, stdout=log, stderr=subprocess.STDOUT
        )
    url = f"http://127.0.0.1:{port}/hooks/darkroom"

    def listens() -> bool:
        assert child.poll() is None, output.read_text()
        try:
            return httpx2.post(url, timeout=60, trust_env=False).status_code == 400
        except httpx2.TransportError:
            return False

    try:
        wait_until(listens, 30, "the receiver")
        yield url, output
    finally:
        child.terminate()
        child.wait(10)


@pytest.mark.long
def test_it_takes_what_darkroom_signs_and_nothing_else(receiver: tuple[str, Path]) -> None:
    url, output = receiver
    now = datetime.now(UTC)
    fine = signed_headers("evt_1", now, BODY, [SigningKey("v1", SECRET)])
    rotated = signed_headers(
        "evt_1", now, BODY, [SigningKey("v1", new_secret()), SigningKey("v1", SECRET)]
    )
    stranger = signed_headers("evt_1", now, BODY, [SigningKey("v1", new_secret())])
    old = signed_headers("evt_1", now - timedelta(hours=1), BODY, [SigningKey("v1", SECRET)])
    malformed = {**fine, "webhook-signature": "v1"}

    def status(headers: dict[str, str], body: bytes = BODY) -> int:
        return httpx2.post(
            url, headers=headers, content=body, timeout=60, trust_env=False
        ).status_code

    assert [status(fine), status(rotated)] == [204, 204]
    assert [status(stranger), status(old), status(malformed)] == [400, 400, 400]
    assert status(fine, BODY.replace(b"job_1", b"job_2")) == 400
    # Taken twice, acted upon once.
    assert output.read_text().count("job.succeeded job_1") == 1
