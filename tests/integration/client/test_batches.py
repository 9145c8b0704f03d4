"""Batches through the client: submit, follow, steer, collect."""

import asyncio
import io
import json
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import darkroom
from darkroom import AsyncClient, Client
from tests.integration.client.test_jobs import NOBODY
from tests.processes import WorkerProcess

LINES: list[str | dict[str, Any]] = [
    {"custom_id": "hat", "prompt": "a {red|blue} hat", "seed": 7},
    "a yellow scarf",
    {"custom_id": "shoe", "prompt": "a shoe", "num_images": 2},
]


@pytest.fixture
def feeding(cpu_worker: WorkerProcess) -> None:
    """The dispatcher, which feeds batches to the queue."""


def test_from_a_list_to_its_images(client: Client, feeding: None, tmp_path: Path) -> None:
    seen = client.batches.dry_run(LINES)
    assert (seen.accepted, seen.lines, seen.jobs, seen.images) == (True, 3, 4, 5)
    batch = client.batches.submit(LINES, session_id="hats", metadata={"order": "42"})
    assert (batch.counts.total, batch.metadata) == (4, {"order": "42"})
    results = {result.custom_id: result for result in client.batches.results(batch)}
    assert set(results) == {"hat-1", "hat-2", "line-2", "shoe"}
    assert [image.index for image in results["shoe"].images] == [0, 1]
    assert results["hat-1"].images[0].raw["receipt"]["prompt"] == "a red hat"
    done = client.batches.wait(batch, timeout=60)
    assert (done.state, done.images.done, done.is_final) == ("succeeded", 5, True)
    items = list(client.batches.items(batch, state="succeeded", page_size=1))
    assert [item.custom_id for item in items] == ["hat-1", "hat-2", "line-2", "shoe"]
    archive = client.batches.archive(batch, tmp_path / "new" / "hats.zip")
    with zipfile.ZipFile(archive) as opened:
        assert len(opened.namelist()) == 5
        assert "hat-1_7.png" in opened.namelist()
    assert client.batches.contact_sheet(batch, limit=4, columns=2)[8:12] == b"WEBP"
    assert list(client.batches.errors(batch)) == []
    with pytest.raises(darkroom.NothingToRetry):
        client.batches.retry_failed(batch)
    with pytest.raises(darkroom.BatchHasEnded):
        client.batches.pause(batch)


def test_from_files(client: Client, tmp_path: Path) -> None:
    text = "\n".join(json.dumps(line) for line in LINES)
    path = tmp_path / "prompts.jsonl"
    path.write_text(text)
    sent_ahead = client.batches.files.create(path)
    assert client.batches.files.get(sent_ahead).byte_size == len(text)
    ways = (
        client.batches.submit(file=path, defaults={"model": NOBODY}, priority=2),
        client.batches.submit(
            file=io.BytesIO(text.encode()), format="jsonl", defaults={"model": NOBODY}
        ),
        client.batches.submit(upload_id=sent_ahead.id, defaults={"model": NOBODY}),
        client.batches.submit(
            file=("p.csv", b"prompt,seed\na hat,7\n"), defaults={"model": NOBODY}
        ),
    )
    client.batches.files.delete(sent_ahead)
    with pytest.raises(darkroom.NotFoundError):
        client.batches.files.get(sent_ahead)
    assert [batch.counts.total for batch in ways] == [4, 4, 4, 1]
    assert ways[0].priority == 2
    for batch in ways:
        client.batches.cancel(batch)


def test_steering(client: Client) -> None:
    batch = client.batches.submit(["a", "b"], defaults={"model": NOBODY})
    assert client.batches.pause(batch).paused
    assert not client.batches.resume(batch).paused
    assert client.batches.update(batch, priority=9).priority == 9
    with pytest.raises(darkroom.WaitTimeoutError) as unfinished:
        client.batches.wait(batch, timeout=0.1)
    assert unfinished.value.resource.id == batch.id
    assert list(client.batches.results(batch, follow=False)) == []
    assert batch.id in [each.id for each in client.batches.list(state=["queued", "running"])]
    client.batches.cancel(batch)
    assert client.batches.wait(batch, timeout=60).state == "canceled"
    errors = list(client.batches.errors(batch))
    assert {error.type for error in errors} == {"job"}


def test_a_bad_line_refuses_the_batch_and_the_report_says_why(client: Client) -> None:
    lines: list[str | dict[str, Any]] = ["fine", {"prompt": "bad", "steps": 0}]
    with pytest.raises(darkroom.BatchRejected) as refused:
        client.batches.submit(lines)
    assert refused.value.errors
    assert refused.value.batch_id is not None
    [finding] = client.batches.errors(refused.value.batch_id)
    assert (finding.type, finding.line, finding.pointer) == ("validation", 2, "/steps")
    assert not client.batches.dry_run(lines).accepted
    with pytest.raises(ValueError, match="one of"):
        client.batches.submit()


def test_the_same_without_blocking(
    async_client: Callable[[], AsyncClient], feeding: None, tmp_path: Path
) -> None:
    async def run() -> None:
        async with async_client() as client:
            batch = await client.batches.submit(["a tree", "a river"])
            results = [result async for result in client.batches.results(batch)]
            assert sorted(result.line for result in results) == [1, 2]
            archive = await client.batches.archive(batch, tmp_path / "batch.zip")
            assert len(zipfile.ZipFile(archive).namelist()) == 2

    asyncio.run(run())
