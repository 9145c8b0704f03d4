"""One job through a real worker: from the database's row to objects in S3 and rows in Postgres."""

import hashlib
import io
import json
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import pytest
import redis
from PIL import Image as PILImage
from sqlalchemy import select, text
from sqlalchemy.orm import Session, sessionmaker

from shared.core import tenants
from shared.core.broker import celery_app, events_key, publish_job
from shared.core.settings import Settings
from shared.core.storage import Storage
from shared.images.models import Image, Prompt
from shared.images.receipts import read_receipt
from shared.jobs.models import Job, JobAttempt
from shared.jobs.queries import client_requests, lookups
from tests.jobs import accept
from tests.processes import WorkerProcess, slowness, wait_until
from worker.engine.interface import StepUpdate
from worker.jobs.progress import ProgressReporter
from worker.webhooks.progress import ProgressWebhooks, WebhookNotifier

TERMINAL = {"succeeded", "failed", "canceled", "expired"}


@pytest.fixture(scope="module")
def tenant(database: sessionmaker[Session]) -> UUID:
    with database.begin() as session:
        return session.scalars(tenants.ensure_tenant("worker tests")).one()


def submit(database: sessionmaker[Session], settings: Settings, tenant: UUID, **fields: Any) -> Job:
    two_images = {"seeds": [7, 8], "cost": 64 * 64 * 4 * 2}
    with database.begin() as session:
        row = accept(session, tenant, **two_images | fields)
    publish_job(celery_app(settings), row.id, row.model, row.queue_class)
    return row


def finished(database: sessionmaker[Session], job: Job) -> Job:
    def look() -> Job | None:
        with database.begin() as session:
            row = session.scalars(lookups.get_job(job.tenant_id, job.id)).one()
        return row if row.state in TERMINAL else None

    found: Job = wait_until(look, 30, "the end of the job")
    return found


def progress_until_the_end(redis_client: "redis.Redis", job: Job) -> list[dict[str, Any]]:
    """All progress events of a job that has ended; its end is in the database before it is told."""

    def look() -> list[tuple[bytes, dict[str, Any]]] | None:
        entries: Any = redis_client.xrange(events_key(job.id))
        told = [(fields[b"type"], json.loads(fields[b"data"])) for _, fields in entries]
        ended = any(kind == b"job" and data["state"] in TERMINAL for kind, data in told)
        return told if ended else None

    told = wait_until(look, 10, "the event of the job's end")
    return [data for kind, data in told if kind == b"progress"]


def test_a_job_ends_in_images_rows_and_an_embedding(
    database: sessionmaker[Session],
    settings: Settings,
    storage: Storage,
    tenant: UUID,
    generate_worker: WorkerProcess,
) -> None:
    job = finished(database, submit(database, settings, tenant))
    assert job.state == "succeeded", job.error_message
    assert job.gpu_seconds is not None
    assert job.gpu_seconds > 0
    with database.begin() as session:
        images = session.scalars(
            select(Image).where(Image.job_id == job.id).order_by(Image.index)
        ).all()
        prompt = session.get_one(Prompt, images[0].prompt_id)
        attempt = session.get_one(JobAttempt, (job.id, 1))
    assert [image.seed for image in images] == [7, 8]
    assert sum(image.gpu_seconds for image in images) == pytest.approx(job.gpu_seconds)
    assert prompt.text == "a red house"
    assert len(prompt.embedding) == 384
    assert attempt.outcome == "succeeded"
    for image in images:
        assert image.s3_key.startswith("s1/")
        stored = storage.get(image.s3_key)
        assert stored.content_type == "image/png"
        assert hashlib.sha256(stored.body).hexdigest() == image.sha256
        decoded = PILImage.open(io.BytesIO(stored.body))
        assert read_receipt(decoded) == image.receipt
        assert "Seed: " + str(image.seed) in decoded.info["parameters"]
        thumbnail = PILImage.open(io.BytesIO(storage.get(image.thumbnail_s3_key).body))
        assert thumbnail.format == "WEBP"


@pytest.fixture
def refusal(database: sessionmaker[Session]) -> Iterator[str]:
    """A session whose images Postgres refuses, as it would those of a faulty release."""
    name = "refused"
    with database.begin() as session:
        check = f"CHECK (session_id <> '{name}') NOT VALID"
        session.execute(text(f"ALTER TABLE images ADD CONSTRAINT test_refusal {check}"))
    yield name
    with database.begin() as session:
        session.execute(text("ALTER TABLE images DROP CONSTRAINT test_refusal"))


def test_a_commit_that_postgres_refuses_fails_the_job_and_leaves_no_objects(
    *,
    database: sessionmaker[Session],
    settings: Settings,
    storage: Storage,
    tenant: UUID,
    refusal: str,
    generate_worker: WorkerProcess,
) -> None:
    """It is no outage, which would be waited out, nor is the worker lost."""
    job = finished(database, submit(database, settings, tenant, session_id=refusal, max_attempts=1))
    assert (job.state, job.error_code) == ("failed", "internal_error")
    with database.begin() as session:
        attempt = session.get_one(JobAttempt, (job.id, 1))
    assert attempt.outcome == "failed"
    assert attempt.gpu_seconds == job.gpu_seconds
    assert attempt.gpu_seconds  # The images were made.
    wait_until(lambda: not list(storage.list_keys(f"{refusal}/")), 10, "the objects' removal")


def test_a_message_delivered_twice_does_no_harm(
    database: sessionmaker[Session],
    settings: Settings,
    tenant: UUID,
    generate_worker: WorkerProcess,
) -> None:
    job = finished(database, submit(database, settings, tenant))
    publish_job(celery_app(settings), job.id, job.model, job.queue_class)
    later = finished(database, submit(database, settings, tenant))
    assert later.state == "succeeded"
    with database.begin() as session:
        again = session.scalars(lookups.get_job(tenant, job.id)).one()
    assert (again.attempt, again.sequence) == (job.attempt, job.sequence)


def test_what_cannot_pass_fails_at_once_with_its_cause(
    database: sessionmaker[Session],
    settings: Settings,
    tenant: UUID,
    generate_worker: WorkerProcess,
) -> None:
    missing = {"ref": "upl_x", "s3_key": "_uploads/none.png", "sha256": "0" * 64}
    job = submit(database, settings, tenant, kind="img2img", init_image=missing, strength=0.5)
    ended = finished(database, job)
    assert (ended.state, ended.error_code, ended.attempt) == ("failed", "invalid_input", 1)


def test_work_that_is_given_up_is_charged_to_attempt_and_job(
    database: sessionmaker[Session],
    settings: Settings,
    tenant: UUID,
    generate_worker: WorkerProcess,
) -> None:
    """Or a quota of device time would be free for whoever gives up just before the end."""
    soon = datetime.now(UTC) + timedelta(seconds=1 + slowness())  # time to begin in
    many = {"seeds": list(range(600)), "steps": 100}
    job = finished(database, submit(database, settings, tenant, finish_deadline=soon, **many))
    assert job.state == "expired"

    def charged() -> tuple[Job, JobAttempt] | None:
        with database.begin() as session:
            row = session.get_one(Job, job.id)
            attempt = session.get_one(JobAttempt, (job.id, 1))
        return (row, attempt) if (row.gpu_seconds or 0) > 0.1 else None

    # A dispatcher that is quicker than the worker ends the job, and the worker says what it took.
    job, attempt = wait_until(charged, what="what was used")
    assert attempt.outcome == "expired"
    assert attempt.finished_at is not None
    assert attempt.gpu_seconds == job.gpu_seconds
    ran = (attempt.finished_at - attempt.started_at).total_seconds()
    assert (job.gpu_seconds or 0) < ran + 2 * slowness()


def test_device_time_of_all_attempts_adds_up(
    database: sessionmaker[Session],
    settings: Settings,
    tenant: UUID,
    refusal: str,
    generate_worker: WorkerProcess,
) -> None:
    first = submit(database, settings, tenant, session_id=refusal, max_attempts=1)
    failed = finished(database, first)
    with database.begin() as session:
        session.scalars(client_requests.retry(tenant, failed.id, None)).one()
    publish_job(celery_app(settings), failed.id, failed.model, failed.queue_class)
    again = finished(database, failed)
    with database.begin() as session:
        seconds = [
            session.get_one(JobAttempt, (again.id, number)).gpu_seconds or 0 for number in (1, 2)
        ]
    assert min(seconds) > 0
    assert again.gpu_seconds == pytest.approx(sum(seconds))


def test_progress_of_several_images_only_grows_and_is_told_four_times_a_second(
    database: sessionmaker[Session],
    settings: Settings,
    tenant: UUID,
    generate_worker: WorkerProcess,
    redis_client: "redis.Redis",
) -> None:
    job = finished(database, submit(database, settings, tenant, seeds=list(range(8)), steps=100))
    assert job.started_at is not None
    assert job.finished_at is not None
    told = progress_until_the_end(redis_client, job)
    fractions = [event["job_fraction"] for event in told]
    assert fractions == sorted(fractions)
    assert fractions[-1] == 1.0
    # Each image's last step is told when the job ends, if not before.
    assert {event["image_index"] for event in told if event["fraction"] == 1} == set(range(8))
    seconds = (job.finished_at - job.started_at).total_seconds()
    assert 3 <= len(told) <= 4 * seconds + 1 + 8


def test_a_job_that_ends_before_the_engine_has_told_its_last_step_still_ends_whole(
    database: sessionmaker[Session],
    settings: Settings,
    tenant: UUID,
    redis_client: "redis.Redis",
) -> None:
    notifier = WebhookNotifier(celery_app(settings))
    reporter = ProgressReporter(redis_client, notifier, ProgressWebhooks(database, notifier))
    with database.begin() as session:
        job = accept(session, tenant, seeds=[1, 2], model="served by nobody")
    reporter.job_started(job)
    late = reporter.on_step(job, 1)
    late(StepUpdate(3, 4, None))
    for index in (0, 1):
        reporter.image_made(job, index, 4)
    late(StepUpdate(4, 4, None))
    reporter.job_changed(job)
    reporter.close()
    entries: Any = redis_client.xrange(events_key(job.id))
    told = [json.loads(fields[b"data"]) for _, fields in entries if fields[b"type"] == b"progress"]
    assert [event["fraction"] for event in told if event["image_index"] == 1].count(1) == 1
    assert told[-1]["job_fraction"] == 1
