"""Payloads: thin, stable, and never beyond 20 kB."""

import json
from datetime import UTC, datetime
from typing import Any, get_args
from uuid import UUID

import pytest

from api.webhooks.schemas import EventName
from shared.core.ids import new_id
from shared.core.settings import Settings
from shared.core.storage import Storage
from shared.images.models import Image
from shared.webhooks.message import MAX_BYTES, build_body
from shared.webhooks.models import BATCH_EVENTS, JOB_EVENTS, WebhookEvent


@pytest.fixture(scope="module")
def storage() -> Storage:
    """Signs URLs; nothing is asked of a server."""
    return Storage(
        Settings(
            environment="local",
            database_url="postgresql://x",
            redis_url="redis://x",
            s3_endpoint="http://127.0.0.1:9",
            s3_access_key="key",
            s3_secret_key="secret",
        )
    )


def event(**changes: Any) -> WebhookEvent:
    data = {
        "kind": "txt2img",
        "state": "succeeded",
        "model": "sim",
        "session_id": "s1",
        "batch_id": None,
        "custom_id": None,
        "seeds": [7, 8],
        "width": 64,
        "height": 64,
        "output_format": "png",
        "metadata": {"order": "42"},
        "error_code": None,
        "error_message": None,
        "gpu_seconds": 1.25,
        "created_at": "2026-03-01T12:00:00.5+01:00",
        "started_at": "2026-03-01T11:00:01+00:00",
        "finished_at": "2026-03-01T11:00:02+00:00",
    }
    return WebhookEvent(
        id=new_id(),
        tenant_id=new_id(),
        type="job.succeeded",
        resource_id=new_id(),
        sequence=3,
        data={**data, **changes},
        created_at=datetime(2026, 3, 1, 11, 0, 2, tzinfo=UTC),
    )


def image(job_id: UUID, index: int) -> Image:
    key = f"s1/job/1/{index:02d}.png"
    return Image(
        id=new_id(),
        job_id=job_id,
        index=index,
        seed=7 + index,
        width=64,
        height=64,
        content_type="image/png",
        bytes=1000,
        sha256="0" * 64,
        s3_key=key,
        thumbnail_s3_key=key + ".thumb.webp",
    )


def test_what_can_be_asked_for_is_what_there_is() -> None:
    assert set(get_args(EventName)) == {*JOB_EVENTS, *BATCH_EVENTS}


def test_a_job_is_told_by_its_wire_names(storage: Storage) -> None:
    happened = event()
    body = build_body(happened, [image(happened.resource_id, 0)], storage, "https://api.example")
    message = json.loads(body)
    assert message["type"] == "job.succeeded"
    assert message["timestamp"] == "2026-03-01T11:00:02Z"
    assert message["id"].startswith("evt_")
    job = message["data"]
    assert job["id"].startswith("job_")
    assert (job["sequence"], message["sequence"]) == (3, 3)
    assert job["created_at"] == "2026-03-01T11:00:00.500000Z"
    assert job["metadata"] == {"order": "42"}
    assert job["error"] is None
    assert job["batch_id"] is None
    assert job["links"]["self"] == f"https://api.example/v1/jobs/{job['id']}"
    assert job["images"][0]["url"].startswith("http://127.0.0.1:9/")
    assert "truncated" not in job


def test_a_failure_names_its_cause(storage: Storage) -> None:
    happened = event(state="failed", error_code="worker_lost", error_message="gone")
    happened.type = "job.failed"
    job = json.loads(build_body(happened, [], storage, "https://api.example"))["data"]
    assert job["error"] == {"code": "worker_lost", "message": "gone"}
    assert "error_code" not in job


@pytest.mark.parametrize(
    ("images", "metadata", "left_out"),
    [
        (16, {}, []),
        (30, {}, ["images.thumbnail_url"]),
        (64, {}, ["images.thumbnail_url", "images"]),
        (1, {f"k{n}": "😀" * 512 for n in range(16)}, ["images.thumbnail_url", "metadata"]),
    ],
)
def test_what_does_not_fit_is_left_out_and_named(
    storage: Storage, images: int, metadata: dict[str, str], left_out: list[str]
) -> None:
    happened = event(metadata=metadata)
    rows = [image(happened.resource_id, index) for index in range(images)]
    body = build_body(happened, rows, storage, "https://api.example")
    job = json.loads(body)["data"]
    assert len(body) <= MAX_BYTES
    assert job.get("truncated", []) == left_out
    assert all("url" in shown for shown in job["images"])
    assert len(job["images"]) >= min(images, 20)
