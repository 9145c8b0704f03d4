"""The whole stack as a user runs it: `python -m deploy.local run` and `smoke`."""

import json
import os
import re
import signal
import socket
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx2
import psutil
import pytest
from PIL import Image

from deploy.local.ports import choose_port
from tests.processes import PROJECT, wait_until

MODELS = PROJECT / "tests" / "models.toml"
START_SECONDS = 120.0
STOP_SECONDS = 10.0
"""What the stack promises; it kills what takes longer."""


class Run:
    """`python -m deploy.local …` in a folder of its own, with its output in a file."""

    def __init__(self, home: Path, output: Path, *arguments: str, **variables: str) -> None:
        self.home = home
        self._output = output
        environment = {
            **os.environ,
            "DARKROOM_HOME": str(home),
            "DARKROOM_MODELS_FILE": str(MODELS),
            **variables,
        }
        with output.open("wb") as file:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "deploy.local", *arguments],
                cwd=PROJECT,
                env=environment,
                stdout=file,
                stderr=file,
                stdin=subprocess.DEVNULL,
            )

    @property
    def said(self) -> str:
        return self._output.read_text()

    def wait_for(self, text: str) -> None:
        def said_or_ended() -> bool:
            return text in self.said or self.process.poll() is not None

        wait_until(said_or_ended, START_SECONDS, what=f"{text!r} of the stack")
        assert text in self.said, self.said

    def children(self) -> dict[str, psutil.Process]:
        """The running children by name."""
        found = {}
        for record in (self.home / "run").glob("*.json"):
            found[record.stem] = psutil.Process(json.loads(record.read_text())["pid"])
        return found

    def settings(self) -> dict[str, str]:
        """What a shell knows after it has read the file `env`."""
        shell = subprocess.run(
            ["sh", "-c", '. "$1" && env', "sh", str(self.home / "env")],
            check=True,
            capture_output=True,
            text=True,
        )
        lines = [line.partition("=") for line in shell.stdout.splitlines()]
        return {name: value for name, _, value in lines if name.startswith("DARKROOM_")}

    def api(self) -> httpx2.Client:
        known = self.settings()
        return httpx2.Client(
            base_url=known["DARKROOM_URL"],
            headers={"Authorization": f"Bearer {known['DARKROOM_API_KEY']}"},
            timeout=30,
        )

    def end(self) -> None:
        if self.process.poll() is None:
            self.process.terminate()
        try:
            self.process.wait(2 * STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


@pytest.fixture(scope="module")
def port() -> int:
    return choose_port()


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory, port: int) -> Iterator[Run]:
    """A stack that has said that it is ready."""
    folder = tmp_path_factory.mktemp("stack")
    run = Run(folder / "home", folder / "output", "run", f"--port={port}", **free_ports())
    try:
        run.wait_for("Darkroom is ready")
        yield run
    finally:
        run.end()


def free_ports() -> dict[str, str]:
    # Other than the defaults, which a developer's own stack may want meanwhile.
    parts = ("PLAYGROUND", "POSTGRES", "REDIS", "S3")
    return {f"DARKROOM_{part}_PORT": str(choose_port()) for part in parts}


def test_it_ends_its_start_with_a_picture_and_says_where_everything_is(
    stack: Run, port: int
) -> None:
    url = f"http://127.0.0.1:{port}"
    for fact in (url, f"{url}/docs", "drk_", str(stack.home / "first-image.png")):
        assert fact in stack.said
    with Image.open(stack.home / "first-image.png") as picture:
        assert picture.format == "PNG"
    assert "\x1b" not in stack.said  # no colours where there is no terminal


def test_it_writes_settings_that_a_shell_can_read_and_nobody_else(stack: Run, port: int) -> None:
    assert stat.S_IMODE((stack.home / "env").stat().st_mode) == 0o600
    known = stack.settings()
    assert known["DARKROOM_URL"] == f"http://127.0.0.1:{port}"
    for name in ("DATABASE_URL", "REDIS_URL", "S3_ENDPOINT", "S3_BUCKET", "API_KEY"):
        assert known[f"DARKROOM_{name}"]
    with stack.api() as api:
        assert api.get("/v1/models").status_code == 200


def test_the_playground_answers_where_it_says_and_knows_no_secret_but_the_key(stack: Run) -> None:
    playground = re.search(r"playground +(http://127\.0\.0\.1:\d+)", stack.said)
    assert playground is not None
    assert httpx2.get(f"{playground[1]}/_stcore/health").text == "ok"
    known = stack.children()["playground"].environ()
    assert known["DARKROOM_API_KEY"] == stack.settings()["DARKROOM_API_KEY"]
    assert not {"DARKROOM_DATABASE_URL", "DARKROOM_S3_SECRET_KEY"} & set(known)


def test_a_second_start_on_the_same_home_says_so_and_harms_nothing(
    stack: Run, tmp_path: Path
) -> None:
    second = Run(stack.home, tmp_path / "output", "run", f"--port={choose_port()}")
    assert second.process.wait(START_SECONDS) == 1
    assert f"is in use by another stack (process {stack.process.pid})" in second.said
    with stack.api() as api:
        assert api.get("/readyz").status_code == 200


def test_a_part_that_dies_is_started_again(stack: Run) -> None:
    for part in ("redis", "api"):
        stack.children()[part].kill()
        stack.wait_for(f"{part} ended by SIGKILL")
        stack.wait_for(f"{part} runs again")
    with stack.api() as api:
        assert api.get("/readyz").status_code == 200


def test_the_data_outlive_a_killed_supervisor_and_sigterm_stops_everything(
    stack: Run, tmp_path: Path, port: int
) -> None:
    with stack.api() as api:
        (job,) = api.get("/v1/jobs").json()["data"]
    key = stack.settings()["DARKROOM_API_KEY"]
    written = (stack.home / "env").stat().st_mtime
    orphans = stack.children()
    stack.process.kill()
    stack.process.wait()

    again = Run(stack.home, tmp_path / "output", "run", f"--port={port}")
    try:
        # Not until it is ready: a stop must work while the workers still load their models.
        again.wait_for(f"  api             http://127.0.0.1:{port}")
        wait_until(lambda: (again.home / "env").stat().st_mtime > written, what="the settings")
        assert again.settings()["DARKROOM_API_KEY"] == key
        with again.api() as api:
            assert api.get(f"/v1/jobs/{job['id']}").json()["state"] == "succeeded"
            image = api.get(f"/v1/images/{job['images'][0]['id']}/content?proxy=1")
        assert image.content.startswith(b"\x89PNG")
        assert not any(process.is_running() for process in orphans.values())

        children = again.children()
        parts = {"postgres", "redis", "s3", "api", "worker-generate", "worker-cpu", "playground"}
        assert set(children) == parts
        again.process.send_signal(signal.SIGTERM)
        assert again.process.wait(STOP_SECONDS) == 0
        assert not any(process.is_running() for process in children.values())
        assert not list((again.home / "run").glob("*.json"))
    finally:
        again.end()


def test_the_port_of_the_api_is_taken(home: Path, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", choose_port())) as other:
        taken = other.getsockname()[1]
        run = Run(home, tmp_path / "output", "run", DARKROOM_PORT=str(taken))
        assert run.process.wait(START_SECONDS) == 1
    assert f"port {taken} is taken by another program" in run.said
    assert "DARKROOM_PORT" in run.said
    assert not (home / "postgres").exists()  # told before anything was started


def test_smoke_makes_both_pictures(home: Path, tmp_path: Path) -> None:
    run = Run(home, tmp_path / "output", "smoke", TMPDIR=str(tmp_path))
    assert run.process.wait(START_SECONDS) == 0, run.said
    (folder,) = tmp_path.glob("darkroom-smoke-pictures-*")
    assert f"Both pictures are in {folder}" in run.said
    for name in ("txt2img.png", "img2img.png"):
        with Image.open(folder / name) as picture:
            assert picture.format == "PNG"
    assert not list(tmp_path.glob("darkroom-smoke-home-*"))


def test_smoke_says_what_failed(home: Path, tmp_path: Path) -> None:
    models = tmp_path / "models.toml"
    models.write_text("[[model]]\nname = 'no source'\n")
    run = Run(
        home, tmp_path / "output", "smoke", TMPDIR=str(tmp_path), DARKROOM_MODELS_FILE=str(models)
    )
    assert run.process.wait(START_SECONDS) == 1
    assert " ended with exit code " in run.said
    (kept,) = tmp_path.glob("darkroom-smoke-home-*")
    assert f"{kept}/logs" in run.said
