"""The examples of the client's documentation, run as printed, print what is beneath them."""

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx2
import pytest

from darkroom import Client
from deploy.tenants import create_key
from shared.core.settings import Settings
from tests.conftest import EVERY_SCOPE
from tests.processes import PROJECT, ApiProcess, WorkerProcess, free_port, wait_until

DOCS = PROJECT / "docs"
_BLOCK = re.compile(r"```(?P<language>\w+)\n(?P<text>.*?)```", re.S)
_NEXT = "=== next ==="
_SET_UP = ("make run", "pip install", "uvicorn", ".venv/bin/activate")
"""What sets a machine up; the tests run on one that is."""


@pytest.fixture(scope="module")
def surroundings(
    api: ApiProcess, generate_worker: WorkerProcess, searchable: None, settings: Settings
) -> dict[str, str]:
    """The environment of a reader with a running system and a tenant that has nothing yet."""
    url = settings.database_url.get_secret_value()
    key = create_key(url, tenant="readers", name="reader", scopes=EVERY_SCOPE)
    return {**os.environ, "DARKROOM_URL": api.url, "DARKROOM_API_KEY": key}


def blocks(page: str) -> list[tuple[str, str]]:
    """Language and text of each block of a page, in order."""
    text = (DOCS / page).read_text("utf-8")
    return [(found["language"], found["text"]) for found in _BLOCK.finditer(text)]


def named(page: str) -> dict[str, str]:
    """The blocks of a page that begin with a comment naming a file."""
    found = {}
    for _, text in blocks(page):
        first = text.partition("\n")[0]
        if match := re.fullmatch(r"# (\w+\.py)", first):
            found[match[1]] = text
    return found


def run(program: list[str], folder: Path, environment: dict[str, str]) -> str:
    """What a program prints; it must succeed."""
    done = subprocess.run(
        program,
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=150,
        check=False,
    )
    assert done.returncode == 0, f"{done.stdout[-2000:]}\n{done.stderr[-4000:]}"
    return done.stdout


def assert_printed(expected: str, real: str, where: str) -> None:
    """`…` stands for anything, and for any number of lines where it is alone."""
    pattern = "".join(
        r"[\s\S]*" if line == "…" else re.escape(line).replace("…", ".*") + "\n"
        for line in expected.splitlines()
    )
    assert re.fullmatch(pattern, real), f"after\n{where}\ncame\n{real}\ninstead of\n{expected}"


@pytest.mark.parametrize(
    "page",
    [
        "client.md",
        "quickstart.md",
        "tutorials/bulk-from-csv.md",
        "tutorials/find-and-vary.md",
    ],
)
def test_the_python_of_a_page_does_what_it_says(
    page: str, surroundings: dict[str, str], tmp_path: Path
) -> None:
    found = blocks(page)
    for language, text in found:
        if language == "csv":
            (tmp_path / "products.csv").write_text(text)
    code = [text for language, text in found if language == "python"]
    script = tmp_path / "page.py"
    script.write_text(f"\nprint({_NEXT!r}, flush=True)\n".join(code))
    outputs = run([sys.executable, str(script)], tmp_path, surroundings).split(f"{_NEXT}\n")
    printed = iter(outputs)
    compared = 0
    for (language, text), (following, expected) in zip(found, [*found[1:], ("", "")], strict=True):
        if language != "python":
            continue
        output = next(printed)
        if following == "text":
            assert_printed(expected, output, text)
            compared += 1
    assert compared


@pytest.mark.skipif(shutil.which("curl") is None, reason="an example uses curl")
def test_the_shell_of_the_quickstart_does_what_it_says(
    surroundings: dict[str, str], tmp_path: Path
) -> None:
    (tmp_path / ".darkroom").mkdir()
    (tmp_path / ".darkroom" / "env").write_text("")
    lines = ["set -euo pipefail", f'darkroom() {{ "{sys.executable}" -m darkroom.cli "$@"; }}']
    for language, text in blocks("quickstart.md"):
        if language == "sh":
            lines += text.splitlines()
    script = "\n".join(line for line in lines if not any(each in line for each in _SET_UP))
    output = run(["bash", "-c", script], tmp_path, surroundings)
    assert len(list((tmp_path / "pictures").glob("*.png"))) == 2
    assert '"state":"succeeded"' in output
    assert len(list((tmp_path / "hats").rglob("*.png"))) == 3


@contextmanager
def serving(folder: Path, port: int, environment: dict[str, str]) -> Iterator[None]:
    """The app of the tutorial under uvicorn."""
    with (folder / "app.log").open("wb") as log:
        child = subprocess.Popen(
            [sys.executable, "-m", "uvicorn", "app:app", "--port", str(port)],
            cwd=folder,
            env=environment,
            stdout=log,
            stderr=subprocess.STDOUT,
        )
    url = f"http://127.0.0.1:{port}/hooks/darkroom"

    def refuses_strangers() -> bool:
        assert child.poll() is None, (folder / "app.log").read_text()
        try:
            return httpx2.post(url, content=b"{}", trust_env=False).status_code == 400
        except httpx2.TransportError:
            return False

    try:
        wait_until(refuses_strangers, 30, "the app")
        yield
    finally:
        child.terminate()
        child.wait(10)


def test_the_webhook_tutorial_fulfils_an_order_once(
    surroundings: dict[str, str], tmp_path: Path
) -> None:
    port = free_port()
    files = named("tutorials/webhooks-into-fastapi.md")
    assert set(files) == {"app.py", "register.py", "order.py", "log.py"}
    for name, text in files.items():
        (tmp_path / name).write_text(text.replace("127.0.0.1:9000", f"127.0.0.1:{port}"))
    secret = run([sys.executable, "register.py"], tmp_path, surroundings).strip()
    environment = {**surroundings, "DARKROOM_WEBHOOK_SECRET": secret}
    orders = [tmp_path / "orders" / f"4711-{number}.png" for number in (0, 1)]
    with (
        serving(tmp_path, port, environment),
        Client(surroundings["DARKROOM_URL"], surroundings["DARKROOM_API_KEY"]) as client,
    ):
        run([sys.executable, "order.py"], tmp_path, surroundings)
        wait_until(lambda: all(each.exists() for each in orders), 60, "the order's pictures")
        made = orders[0].stat().st_mtime_ns
        [succeeded] = client.webhooks.deliveries.list(event="job.succeeded")
        before = len(succeeded.attempts)
        client.webhooks.deliveries.redeliver(succeeded)

        def sent_again() -> bool:
            found = client.webhooks.deliveries.get(succeeded)
            return found.state == "succeeded" and len(found.attempts) > before

        wait_until(sent_again, 60, "the second delivery")
        assert "job.succeeded 204" in run([sys.executable, "log.py"], tmp_path, surroundings)
    assert orders[0].stat().st_mtime_ns == made, "the order was fulfilled twice"
