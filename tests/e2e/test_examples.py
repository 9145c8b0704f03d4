"""The examples, run as a user runs them, against the running system."""

import os
import subprocess
import sys
from base64 import b64decode
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import nbformat
import pytest
from nbclient import NotebookClient

from darkroom import Client, Job
from darkroom.types.webhooks import Delivery
from tests.processes import PROJECT, ApiProcess, WorkerProcess, free_port, wait_until

EXAMPLES = PROJECT / "examples"
pytestmark = pytest.mark.long


@pytest.fixture
def variables(
    api: ApiProcess, generate_worker: WorkerProcess, cpu_worker: WorkerProcess, api_key: str
) -> dict[str, str]:
    """The environment of a user of the running system."""
    path = os.pathsep.join([str(PROJECT / "client"), *filter(None, sys.path)])
    return {
        **os.environ,
        "DARKROOM_URL": api.url,
        "DARKROOM_API_KEY": api_key,
        "PYTHONPATH": path,
    }


@pytest.fixture
def cards(variables: dict[str, str], tmp_path: Path) -> Iterator[httpx2.Client]:
    """The running app."""
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    command = [sys.executable, "-m", "uvicorn", f"--app-dir={EXAMPLES / 'fastapi_app'}", "app:app"]
    with (tmp_path / "log").open("wb") as log:
        app = subprocess.Popen(
            [*command, f"--port={port}"],
            env={**variables, "CARDS_URL": url, "CARDS_FOLDER": str(tmp_path / "cards")},
            stdout=log,
            stderr=log,
        )
    try:
        with httpx2.Client(base_url=url, timeout=30) as http:
            wait_until(lambda: answers(http), 60, "the app")
            yield http
    finally:
        app.terminate()
        app.wait(20)


def delivered(client: Client, job: Job) -> Delivery | None:
    """The delivery of the job's success, once its receiver's answer is on record."""
    [found] = client.webhooks.deliveries.list(job=job, event="job.succeeded").take(1)
    return found if found.state == "succeeded" else None


def answers(http: httpx2.Client) -> bool:
    try:
        return http.get("/").status_code == 200
    except httpx2.TransportError:
        return False


def test_the_app_orders_a_card_once_and_shows_it(
    cards: httpx2.Client, variables: dict[str, str], tmp_path: Path
) -> None:
    ordered = cards.post("/cards", data={"prompt": "a <red> house"})
    assert ordered.status_code == 303, ordered.text
    page = wait_until(lambda: (text := cards.get("/").text).count("<img") and text, 60, "a card")
    assert "a &lt;red&gt; house" in page
    assert "refresh" not in page
    source = page.partition('<img src="')[2].partition('"')[0]
    assert cards.get(source).content.startswith(b"\x89PNG")
    [file] = (tmp_path / "cards").glob("*.png")
    fetched = file.stat().st_mtime_ns
    with Client(variables["DARKROOM_URL"], variables["DARKROOM_API_KEY"]) as client:
        [job] = client.jobs.list().take(1)
        # The image is there while the attempt that told of it is still being written down.
        succeeded = wait_until(lambda: delivered(client, job), 60, "the first delivery")
        before = len(succeeded.attempts)
        client.webhooks.deliveries.redeliver(succeeded)
        wait_until(
            lambda: len(client.webhooks.deliveries.get(succeeded).attempts) > before,
            60,
            "the second delivery",
        )
    assert "refresh" not in cards.get("/").text, "the card is fetched again"
    assert file.stat().st_mtime_ns == fetched, "the card was fetched twice"


def test_the_app_believes_nobody_else(cards: httpx2.Client) -> None:
    forged = {"webhook-id": "evt_1", "webhook-timestamp": "1", "webhook-signature": "v1,AAAA"}
    assert cards.post("/hooks/darkroom", headers=forged, json={}).status_code == 400


def test_the_table_becomes_a_folder_of_images_and_can_be_run_again(
    variables: dict[str, str], tmp_path: Path
) -> None:
    script = EXAMPLES / "csv_batch" / "product_images.py"
    command = [sys.executable, str(script), str(script.with_name("products.csv")), "--out=made"]

    def run() -> str:
        done = subprocess.run(
            command, env=variables, cwd=tmp_path, check=True, capture_output=True, text=True
        )
        return done.stdout

    assert "succeeded: 3 of 3 products" in run()
    made = sorted(path.name for path in (tmp_path / "made").iterdir())
    assert made == [f"{sku}_{seed}.png" for sku in ("H-100", "H-200", "S-300") for seed in (1, 2)]
    assert run() == "succeeded: 3 of 3 products\n", "the second run fetches and makes nothing"


def test_the_notebook_runs_from_top_to_bottom_and_shows_its_images(
    api: ApiProcess, variables: dict[str, str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    wait_until(lambda: api.http.get("/v1/search?q=warm").is_success, 90, "the embedding model")
    own = {
        name: str(tmp_path) for name in ("IPYTHONDIR", "JUPYTER_RUNTIME_DIR", "JUPYTER_DATA_DIR")
    }
    for name, value in (variables | own).items():
        monkeypatch.setenv(name, value)
    notebook = nbformat.read(EXAMPLES / "notebook" / "explore.ipynb", as_version=4)
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert not any(cell.outputs for cell in cells), "clear its outputs"
    NotebookClient(notebook, timeout=180, kernel_name="python3").execute()
    results: list[Any] = [
        next((each.data for each in cell.outputs if each.output_type == "execute_result"), {})
        for cell in cells
    ]
    bars = [each for each in cells[1].outputs if each.output_type == "display_data"]
    assert "3 images in" in bars[0].data["text/html"]
    _, grid, chosen, nights, other_side, hits, _, verdict = results
    assert grid["text/html"].count("<img ") == 3
    assert nights["text/html"].count("<img ") == 4
    for shown in (chosen, other_side):
        assert b64decode(shown["image/png"]).startswith(b"\x89PNG")
    assert "mountains" in hits["text/plain"], "it is found by its meaning"
    assert verdict["text/plain"] == "'identical'"
