"""The whole stack as a user runs it: `darkroom-server up` and `smoke`."""

import re
import signal
import socket
import stat
from pathlib import Path

import httpx2
import pytest
from PIL import Image

from deploy.local.workers import CAN_FORK
from tests.processes import free_port, slowness, wait_until
from tests.stack import START_SECONDS, STOP_SECONDS, Stack


def test_it_ends_its_start_with_an_image_and_says_where_everything_is(stack: Stack) -> None:
    url = f"http://127.0.0.1:{stack.port}"
    for fact in (url, f"{url}/docs", "drk_", str(stack.home / "first-image.png")):
        assert fact in stack.said
    with Image.open(stack.home / "first-image.png") as image:
        assert image.format == "PNG"
    assert "\x1b" not in stack.said  # no colours where there is no terminal


def test_it_writes_settings_that_a_shell_can_read_and_nobody_else(stack: Stack) -> None:
    assert stat.S_IMODE((stack.home / "env").stat().st_mode) == 0o600
    known = stack.settings()
    assert known["DARKROOM_URL"] == f"http://127.0.0.1:{stack.port}"
    for name in ("DATABASE_URL", "REDIS_URL", "S3_ENDPOINT", "S3_BUCKET", "API_KEY"):
        assert known[f"DARKROOM_{name}"]
    with stack.api() as api:
        assert api.get("/v1/models").status_code == 200


def test_the_playground_answers_where_it_says_and_knows_no_secret_but_the_key(stack: Stack) -> None:
    playground = re.search(r"playground +(http://127\.0\.0\.1:\d+)", stack.said)
    assert playground is not None
    assert httpx2.get(f"{playground[1]}/_stcore/health", timeout=60).text == "ok"
    known = stack.children()["playground"].environ()
    assert known["DARKROOM_API_KEY"] == stack.settings()["DARKROOM_API_KEY"]
    assert not {"DARKROOM_DATABASE_URL", "DARKROOM_S3_SECRET_KEY"} & set(known)


def test_a_second_start_on_the_same_home_says_so_and_harms_nothing(
    stack: Stack, tmp_path: Path
) -> None:
    second = Stack(stack.home, tmp_path / "output", "up", f"--port={free_port()}")
    assert second.process.wait(START_SECONDS) == 1
    assert f"is in use by another stack (process {stack.process.pid})" in second.said
    wait_until_ready(stack)


def test_a_worker_that_dies_is_started_again_and_the_other_works_on(stack: Stack) -> None:
    before, log = stack.children(), stack.home / "logs" / "worker-cpu.log"
    wait_until(lambda: log.read_text().count("embedding_model_ready") == 1, what="the first one")
    before["worker-cpu"].kill()
    stack.wait_for("worker-cpu ended by SIGKILL")
    stack.wait_for("worker-cpu runs again")
    wait_until(lambda: log.read_text().count("embedding_model_ready") == 2, what="the new one")
    assert stack.children()["worker-generate"] == before["worker-generate"]
    assert before["worker-generate"].is_running()


@pytest.mark.skipif(not CAN_FORK, reason="workers are started anew here")
def test_the_workers_share_what_both_import(stack: Stack) -> None:
    processes = stack.children()
    assert processes["libraries"].num_threads() == 1  # no fork would have another
    for name in ("worker-cpu", "worker-generate"):
        memory = Path(f"/proc/{processes[name].pid}/smaps_rollup").read_text()
        shared = re.search(r"Shared_Dirty: +(\d+) kB", memory)
        assert shared is not None
        assert int(shared[1]) > 150_000, memory


@pytest.mark.long  # `test_restarts.py` shows it of one part
def test_a_part_that_dies_is_started_again(stack: Stack) -> None:
    for part in ("redis", "api"):
        stack.children()[part].kill()
        stack.wait_for(f"{part} ended by SIGKILL")
        stack.wait_for(f"{part} runs again")
    wait_until_ready(stack)


def wait_until_ready(stack: Stack) -> None:
    """What the API asks has little time to answer, and all of it runs on one machine."""
    with stack.api() as api:
        wait_until(lambda: api.get("/readyz").status_code == 200, what="the API and its servers")


@pytest.mark.long
def test_the_data_outlive_a_killed_supervisor_and_sigterm_stops_everything(
    stack: Stack, tmp_path: Path
) -> None:
    with stack.api() as api:
        job = api.get("/v1/jobs").json()["data"][-1]  # the image at the end of the start
    key = stack.settings()["DARKROOM_API_KEY"]
    written = (stack.home / "env").stat().st_mtime
    orphans = stack.children()
    stack.process.kill()
    stack.process.wait()

    again = Stack(stack.home, tmp_path / "output", "up", f"--port={stack.port}")
    try:
        # Not until it is ready: a stop must work while the workers still load their models.
        again.wait_for(f"  api             http://127.0.0.1:{stack.port}")
        wait_until(lambda: (again.home / "env").stat().st_mtime > written, what="the settings")
        assert again.settings()["DARKROOM_API_KEY"] == key
        with again.api() as api:
            assert api.get(f"/v1/jobs/{job['id']}").json()["state"] == "succeeded"
            image = api.get(f"/v1/images/{job['images'][0]['id']}/content?proxy=1")
        assert image.content.startswith(b"\x89PNG")
        assert not any(process.is_running() for process in orphans.values())

        children = again.children()
        parts = {"postgres", "redis", "s3", "api", "worker-generate", "worker-cpu", "playground"}
        assert set(children) == (parts | {"libraries"} if CAN_FORK else parts)
        again.process.send_signal(signal.SIGTERM)
        # Which it promises; the rest is what a busy machine takes to tell of it.
        assert again.process.wait(STOP_SECONDS + 5 * slowness()) == 0
        assert not any(process.is_running() for process in children.values())
        assert not list((again.home / "run").glob("*.json"))
    finally:
        again.end()


def test_the_port_of_the_api_is_taken(home: Path, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", free_port())) as other:
        taken = other.getsockname()[1]
        run = Stack(home, tmp_path / "output", "up", DARKROOM_PORT=str(taken))
        assert run.process.wait(START_SECONDS) == 1
    assert f"port {taken} is taken by another program" in run.said
    assert "DARKROOM_PORT" in run.said
    assert not (home / "postgres").exists()  # told before anything was started


@pytest.mark.long
def test_smoke_makes_both_images(home: Path, tmp_path: Path) -> None:
    run = Stack(home, tmp_path / "output", "smoke", TMPDIR=str(tmp_path))
    assert run.process.wait(START_SECONDS) == 0, run.said
    (folder,) = tmp_path.glob("darkroom-smoke-images-*")
    assert f"Both images are in {folder}" in run.said
    for name in ("txt2img.png", "img2img.png"):
        with Image.open(folder / name) as image:
            assert image.format == "PNG"
    assert not list(tmp_path.glob("darkroom-smoke-home-*"))


@pytest.mark.long
def test_smoke_says_what_failed(home: Path, tmp_path: Path) -> None:
    models = tmp_path / "models.toml"
    models.write_text("[[model]]\nname = 'no source'\n")
    run = Stack(
        home, tmp_path / "output", "smoke", TMPDIR=str(tmp_path), DARKROOM_MODELS_FILE=str(models)
    )
    assert run.process.wait(START_SECONDS) == 1
    assert " ended with exit code " in run.said
    (kept,) = tmp_path.glob("darkroom-smoke-home-*")
    assert f"{kept}/logs" in run.said
