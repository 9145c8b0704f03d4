"""The end of a job: encode, upload, embed the prompt, and commit everything in one transaction.

What the GPU made is kept in hand while Postgres or S3 is away: uploads and the commit are tried
again for minutes, so that an outage costs no second run.
"""

import hashlib
from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar
from uuid import UUID

import stamina
from PIL import Image
from sqlalchemy import select
from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm import Session, sessionmaker

from shared.errors import StorageUnavailable
from shared.gallery import statements as gallery
from shared.ids import new_id, to_wire
from shared.jobs import statements as ledger
from shared.jobs.models import Job
from shared.jobs.state import JobState
from shared.storage import Storage, image_key, thumbnail_key
from worker.embedder import Embedder
from worker.encode import EncodedImage, encode_image
from worker.engine.interface import GeneratedImage
from worker.leases import Lease
from worker.receipt import make_receipt

PATIENCE = timedelta(minutes=10)
"""How long finished pictures wait for S3 or Postgres before the attempt is given up."""


class LeaseGone(Exception):
    """Somebody else has this job now; what this attempt made is discarded."""


@dataclass(frozen=True)
class Picture:
    """One finished image of a job: its row, and its files."""

    row: dict[str, Any]
    encoded: EncodedImage

    @property
    def keys(self) -> tuple[str, str]:
        """The keys of its objects in S3."""
        return self.row["s3_key"], self.row["thumbnail_s3_key"]

    def event(self) -> dict[str, Any]:
        """What a client's event stream says of it."""
        row = self.row
        return {
            "id": to_wire("img", row["id"]),
            "index": row["index"],
            "seed": row["seed"],
            "sha256": row["sha256"],
        }


def develop(job: Job, index: int, generated: GeneratedImage) -> Picture:
    """Encode one image with its receipt and make its row."""
    receipt = make_receipt(job, index, generated.facts)
    encoded = encode_image(Image.fromarray(generated.pixels), job.output_format, receipt)
    key = image_key(job.session_id, job.id, job.attempt, index, encoded.content_type)
    row = {
        "id": new_id(),
        "tenant_id": job.tenant_id,
        "job_id": job.id,
        "session_id": job.session_id,
        "index": index,
        "attempt": job.attempt,
        "seed": job.seeds[index],
        "width": job.width,
        "height": job.height,
        "content_type": encoded.content_type,
        "bytes": len(encoded.body),
        "sha256": hashlib.sha256(encoded.body).hexdigest(),
        "s3_key": key,
        "thumbnail_s3_key": thumbnail_key(key),
        "receipt": receipt,
        "gpu_seconds": generated.gpu_seconds,
    }
    return Picture(row, encoded)


def upload(storage: Storage, executor: Executor, picture: Picture, lease: Lease) -> None:
    """Put a picture and its thumbnail, for as long as the lease and the patience last.

    Raises:
        StorageUnavailable: S3 stayed away.
        LeaseGone: the job was stopped meanwhile.
    """
    thumbnail = executor.submit(
        _put_patiently,
        storage,
        picture.row["thumbnail_s3_key"],
        picture.encoded.thumbnail_webp,
        "image/webp",
        lease,
    )
    _put_patiently(
        storage, picture.row["s3_key"], picture.encoded.body, picture.encoded.content_type, lease
    )
    thumbnail.result()


def commit(
    database: sessionmaker[Session],
    embedder: Embedder,
    job: Job,
    pictures: Sequence[Picture],
    *,
    warnings: Sequence[dict[str, str]],
    lease: Lease,
) -> Job:
    """Commit images, receipts, embedding and state together, if the attempt is still ours.

    Raises:
        LeaseGone: it is not; nothing was written.
        DBAPIError: Postgres stayed away.
    """
    prompt = _KnownPrompt(embedder, job)
    gpu_seconds = sum(picture.row["gpu_seconds"] for picture in pictures)

    def attempt_commit() -> Job:
        with database.begin() as session:
            done = session.scalars(
                ledger.succeed(job.id, lease.attempt, gpu_seconds, warnings)
            ).one_or_none()
            if done is None:
                return _already_committed(session, job.id, lease.attempt)
            prompt_id = prompt.row_id(session)
            rows = [{**picture.row, "prompt_id": prompt_id} for picture in pictures]
            session.execute(gallery.insert_images(rows))
            return done

    return _patiently(attempt_commit, DBAPIError, lease)


class _KnownPrompt:
    """Embeds the prompt only if the tenant has never used it, and only once over all tries."""

    def __init__(self, embedder: Embedder, job: Job) -> None:
        self._embedder = embedder
        self._job = job
        self._embedding: list[float] | None = None

    def row_id(self, session: Session) -> UUID:
        job = self._job
        if self._embedding is None:
            known = session.scalars(gallery.find_prompt(job.tenant_id, job.prompt)).one_or_none()
            if known is not None:
                return known
            [self._embedding] = self._embedder.embed([job.prompt])
        return session.scalars(
            gallery.ensure_prompt(
                job.tenant_id, job.prompt, self._embedding, self._embedder.model_name
            )
        ).one()


def _already_committed(session: Session, job_id: UUID, attempt: int) -> Job:
    """The answer to an earlier COMMIT may have been lost on the way: then it is done."""
    job = session.scalars(
        select(Job).where(Job.id == job_id, Job.attempt == attempt, Job.state == JobState.SUCCEEDED)
    ).one_or_none()
    if job is None:
        raise LeaseGone
    return job


def _put_patiently(
    storage: Storage, key: str, body: bytes, content_type: str, lease: Lease
) -> None:
    _patiently(lambda: storage.put(key, body, content_type), StorageUnavailable, lease)


T = TypeVar("T")


def _patiently(action: Callable[[], T], error: type[Exception], lease: Lease) -> T:
    for attempt in stamina.retry_context(
        on=error, attempts=None, timeout=PATIENCE, wait_initial=0.2, wait_max=5.0
    ):
        with attempt:
            if lease.stop_reason is not None:
                raise LeaseGone
            return action()
    raise AssertionError("unreachable: the retry either returns or raises")
