"""A batch's life: watched, paused, canceled, retried, and what comes of it."""

import io
import json
import unicodedata
import zipfile
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
import redis
from PIL import Image as PILImage
from sqlalchemy import select, update
from sqlalchemy.orm import Session, sessionmaker

from shared.batches.models import Batch
from shared.core.broker import generate_queue, job_of
from shared.core.ids import decode_id, encode_id
from shared.jobs.models import Job
from shared.webhooks.models import WebhookEvent
from tests.integration.batches.client import get, lines_of, make, wait_ended
from tests.integration.batches.job_store import make_batch
from tests.processes import ApiProcess, WorkerProcess, wait_until

pytestmark = pytest.mark.usefixtures("cpu_worker", "generate_worker")


def test_results_stream_while_the_batch_runs(api: ApiProcess) -> None:
    items = [{"custom_id": f"c{n}", "prompt": "a hat", "seeds": [n, n + 50]} for n in range(20)]
    batch = make(api, items)
    path = f"/v1/batches/{batch['id']}/results"
    with api.http.stream("GET", path) as answer:
        found = [json.loads(line) for line in answer.iter_lines() if line.strip()]
    assert {f["custom_id"] for f in found} == {i["custom_id"] for i in items}
    assert len(found) == len(items)
    assert {f["state"] for f in found} == {"succeeded"}
    one = found[0]
    assert [image["seed"] for image in one["images"]] == one["seeds"]
    assert all(image["receipt"]["seed"] == image["seed"] for image in one["images"])
    assert api.http.get(one["images"][0]["url"], headers={}).content[:4] in (b"\x89PNG", b"<?xm")
    ended = wait_ended(api, batch["id"])
    assert (ended["state"], ended["fraction"]) == ("succeeded", 1.0)
    assert ended["images"] == {"total": 40, "done": 40}
    assert len(lines_of(api.http.get(path))) == 20
    assert lines_of(api.http.get(f"/v1/batches/{batch['id']}/errors")) == []


def test_archive_and_contact_sheet(api: ApiProcess) -> None:
    items = [
        {"custom_id": "plain", "prompt": "a hat", "seed": 7},
        {"custom_id": "../../etc/passwd", "prompt": "a scarf", "seed": 8},
        {"custom_id": "twice", "prompt": "a shoe", "seeds": [9, 9]},
        {"custom_id": "Plain", "prompt": "a hat", "seed": 7},
        {"custom_id": "caf\u00e9", "prompt": "a hat", "seed": 7},
        {"custom_id": "CAFE\u0301", "prompt": "a hat", "seed": 7},
    ]
    batch = make(api, items)
    early = api.http.get(f"/v1/batches/{batch['id']}/contact-sheet")
    assert early.status_code in (200, 404)
    wait_ended(api, batch["id"])
    answer = api.http.get(f"/v1/batches/{batch['id']}/archive")
    assert answer.headers["content-type"] == "application/zip"
    with zipfile.ZipFile(io.BytesIO(answer.content)) as archive:
        assert archive.testzip() is None
        names = archive.namelist()
        assert names[0] == "plain_7.png"
        assert names[1].startswith(".._.._etc_passwd_8_") or names[1].startswith("_.._etc_passwd_8")
        assert "/" not in "".join(names)
        assert len({unicodedata.normalize("NFC", name).casefold() for name in names}) == 7
        assert PILImage.open(io.BytesIO(archive.read("plain_7.png"))).size == (64, 64)
    sheet = api.http.get(f"/v1/batches/{batch['id']}/contact-sheet", params={"columns": 2})
    image = PILImage.open(io.BytesIO(sheet.content))
    assert image.format == "WEBP"
    assert image.width < image.height * 2


def test_a_paused_batch_starts_nothing_until_it_is_resumed(
    api: ApiProcess, database: sessionmaker[Session], tenant: UUID
) -> None:
    row_id = make_batch(database, tenant, 60, job={"steps": 100}, batch={"paused": True})
    batch_id, of_batch = encode_id("batch", row_id), Job.batch_id == row_id
    with database.begin() as session:  # a few are quick, the others take six seconds
        session.execute(update(Job).where(of_batch, Job.line < 5).values(steps=2))
    api.http.post(f"/v1/batches/{batch_id}/resume")
    wait_until(lambda: get(api, batch_id)["counts"]["succeeded"], 60, "a first image")
    paused = api.http.post(f"/v1/batches/{batch_id}/pause").json()
    assert paused["paused"]
    assert paused["eta"] is None
    wait_until(lambda: not get(api, batch_id)["counts"]["running"], 60, "the end of what ran")
    before = get(api, batch_id)["counts"]
    assert before["queued"] > 0
    # Another batch comes and goes; the paused one has not moved.
    wait_ended(api, make(api, ["a hat"] * 5)["id"])
    assert get(api, batch_id)["counts"] == before
    assert api.http.patch(f"/v1/batches/{batch_id}", json={"priority": 8}).json()["priority"] == 8
    with database.begin() as session:
        session.execute(update(Job).where(of_batch, Job.state == "queued").values(steps=2))
    assert not api.http.post(f"/v1/batches/{batch_id}/resume").json()["paused"]
    assert wait_ended(api, batch_id, 90)["counts"]["succeeded"] == 60
    refused = api.http.post(f"/v1/batches/{batch_id}/pause")
    assert (refused.status_code, refused.json()["code"]) == (409, "batch_has_ended")


@pytest.mark.long
def test_what_was_fed_before_a_pause_starts_after_it(
    api: ApiProcess, environment: dict[str, str], redis_client: "redis.Redis", tmp_path: Path
) -> None:
    """Its messages are in Redis, where nobody takes them back."""
    held = {"model": "held", "steps": 2}
    batch_id = make(api, ["a hat"] * 3, defaults=held)["id"]
    items = api.http.get(f"/v1/batches/{batch_id}/items").json()["data"]
    jobs = {decode_id("job", item["id"]) for item in items}

    def is_fed() -> bool:
        messages: Any = redis_client.lrange(generate_queue("held", "bulk"), 0, -1)
        return jobs <= set(map(job_of, messages))

    wait_until(is_fed, 60, "the messages")
    assert api.http.post(f"/v1/batches/{batch_id}/pause").json()["paused"]
    with WorkerProcess(environment, ["generate", "--model", "held"], tmp_path / "log"):
        # Another batch, whose messages are behind these, comes and goes.
        wait_ended(api, make(api, ["a hat"] * 3, defaults=held)["id"])
        assert get(api, batch_id)["counts"]["queued"] == 3
        assert not api.http.post(f"/v1/batches/{batch_id}/resume").json()["paused"]
        assert wait_ended(api, batch_id)["counts"]["succeeded"] == 3


def test_cancel_keeps_what_was_made(
    api: ApiProcess, database: sessionmaker[Session], tenant: UUID
) -> None:
    batch_id = encode_id("batch", make_batch(database, tenant, 200, job={"steps": 100}))
    wait_until(lambda: get(api, batch_id)["counts"]["succeeded"], 60, "a first image")
    canceled = api.http.post(f"/v1/batches/{batch_id}/cancel")
    assert canceled.status_code == 200, canceled.text
    assert canceled.json()["counts"]["queued"] == 0
    ended = wait_ended(api, batch_id)
    assert ended["state"] == "canceled"
    assert ended["counts"]["succeeded"] + ended["counts"]["canceled"] == 200
    assert ended["counts"]["succeeded"] >= 1
    again = api.http.post(f"/v1/batches/{batch_id}/cancel")
    assert again.status_code == 200
    errors = lines_of(api.http.get(f"/v1/batches/{batch_id}/errors"))
    assert len(errors) == ended["counts"]["canceled"]
    assert {error["code"] for error in errors} == {"canceled"}


def test_only_what_failed_is_retried(
    api: ApiProcess, database: sessionmaker[Session], tenant: UUID
) -> None:
    row_id = make_batch(database, tenant, 8, batch={"paused": True})
    batch_id = encode_id("batch", row_id)
    bad = Job.custom_id.in_(("3", "5"))
    with database.begin() as session:
        session.execute(update(Job).where(Job.batch_id == row_id, bad).values(scheduler="none"))
    api.http.post(f"/v1/batches/{batch_id}/resume")
    ended = wait_ended(api, batch_id)
    assert (ended["state"], ended["counts"]["failed"]) == ("partial", 2)
    errors = lines_of(api.http.get(f"/v1/batches/{batch_id}/errors"))
    assert {(error["custom_id"], error["code"]) for error in errors} == {
        ("3", "invalid_input"),
        ("5", "invalid_input"),
    }
    with database.begin() as session:
        session.execute(update(Job).where(Job.batch_id == row_id, bad).values(scheduler="ddim"))
    retried = api.http.post(f"/v1/batches/{batch_id}/retry-failed")
    assert retried.status_code == 202, retried.text
    assert retried.json()["retried"] == 2
    assert wait_ended(api, batch_id)["state"] == "succeeded"
    with database.begin() as session:
        jobs = session.scalars(select(Job).where(Job.batch_id == row_id)).all()
    assert {job.custom_id: job.attempt for job in jobs} == {
        str(n): 2 if n in (3, 5) else 1 for n in range(1, 9)
    }
    nothing = api.http.post(f"/v1/batches/{batch_id}/retry-failed")
    assert (nothing.status_code, nothing.json()["code"]) == (409, "nothing_to_retry")


def test_a_single_retry_opens_the_batch_again(
    api: ApiProcess, database: sessionmaker[Session], tenant: UUID
) -> None:
    row_id = make_batch(database, tenant, 2, job={"scheduler": "none"})
    batch_id = encode_id("batch", row_id)
    assert wait_ended(api, batch_id)["state"] == "failed"
    with database.begin() as session:
        session.execute(update(Job).where(Job.batch_id == row_id).values(scheduler="ddim"))
    item = api.http.get(f"/v1/batches/{batch_id}/items").json()["data"][0]
    assert api.http.post(f"/v1/jobs/{item['id']}/retry").status_code == 202
    wait_until(lambda: get(api, batch_id)["state"] == "partial", 60, "another end")
    assert get(api, batch_id)["counts"]["succeeded"] == 1


def test_deadlines_expire_what_has_not_started(
    api: ApiProcess, database: sessionmaker[Session], tenant: UUID
) -> None:
    batch = make(api, ["a hat"] * 3, start_within=0.001)
    ended = wait_ended(api, batch["id"])
    assert ended["state"] in ("expired", "partial")
    assert ended["counts"]["expired"] >= 1


def test_the_end_is_told_once(api: ApiProcess, database: sessionmaker[Session]) -> None:
    batch = make(api, ["a hat"] * 3, webhook={"url": "http://127.0.0.1:9/nobody"})
    assert batch["webhook_url"] == "http://127.0.0.1:9/nobody"
    wait_ended(api, batch["id"])
    row_id = decode_id("batch", batch["id"])
    with database.begin() as session:
        told = session.scalars(
            select(WebhookEvent.type).where(WebhookEvent.resource_id == row_id)
        ).all()
        assert session.get_one(Batch, row_id).summary is not None
    assert sorted(told) == ["batch.completed", "batch.validated"]
