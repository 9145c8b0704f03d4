"""The end of a job: encode, upload, and commit everything in one transaction.

What the GPU made is kept in hand while Postgres or S3 is away (see `worker.jobs.patience`), so
that an outage costs no second run.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any
from uuid import UUID

from PIL import Image
from sqlalchemy import Select
from sqlalchemy.orm import Session, sessionmaker

from shared.database import one_statement
from shared.ids import new_id, to_wire
from shared.jobs import statements as ledger
from shared.jobs.models import Job
from shared.storage import Storage, image_key, thumbnail_key
from worker.engine.interface import GeneratedImage
from worker.jobs.encode import EncodedImage, encode_image
from worker.jobs.leases import Lease
from worker.jobs.patience import LeaseGone, with_ledger, with_storage
from worker.jobs.prompt_row import PromptRow
from worker.jobs.receipt import make_receipt


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


def encode_picture(job: Job, index: int, generated: GeneratedImage) -> Picture:
    """Encode one image with its receipt and make its row."""
    receipt = make_receipt(job, index, generated)
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


def upload(storage: Storage, picture: Picture, lease: Lease) -> None:
    """Put a picture and its thumbnail, for as long as the lease and the patience last.

    One after the other: a store over a file system makes the attempt's folder for the first, and
    two at once have been seen to make it twice, and then to lose one of the objects for a while
    (rclone 1.75, four in a hundred).

    Raises:
        StorageUnavailable: S3 stayed away.
        LeaseGone: the job was stopped meanwhile.
    """
    row, encoded = picture.row, picture.encoded
    for key, body, content_type in (
        (row["s3_key"], encoded.body, encoded.content_type),
        (row["thumbnail_s3_key"], encoded.thumbnail_webp, "image/webp"),
    ):
        with_storage(partial(storage.put, key, body, content_type), lease)


def commit(
    database: sessionmaker[Session],
    prompt: PromptRow,
    job: Job,
    pictures: Sequence[Picture],
    *,
    warnings: Sequence[dict[str, str]],
    lease: Lease,
) -> Job:
    """Commit images, receipts, embedding and state together, if the attempt is still ours.

    Raises:
        LeaseGone: it is not; nothing was written.
        SQLAlchemyError: Postgres stayed away.
    """
    gpu_seconds = sum(picture.row["gpu_seconds"] for picture in pictures)
    rows = [picture.row for picture in pictures]
    success = ledger.succeed(
        job.id,
        lease.attempt,
        gpu_seconds,
        warnings,
        images=rows,
        prompt_sha256=prompt.sha256,
    )

    def one_try() -> Job:
        prompt.look_up(database)
        return commit_success(database, job.id, lease.attempt, success, prompt)

    done = with_ledger(one_try, lease)
    prompt.committed()
    return done


def commit_success(
    database: sessionmaker[Session],
    job_id: UUID,
    attempt: int,
    success: Select[Job],
    prompt: PromptRow,
) -> Job:
    """Commit the job's success with its images: one statement where the prompt is on record.

    Safe to repeat: after an earlier try whose COMMIT was not answered it finds the job done.

    Raises:
        LeaseGone: the attempt is not the running one; nothing was written.
        SQLAlchemyError: Postgres is away, or refuses.
    """
    if prompt.known:
        with one_statement(database) as session:
            done = session.scalars(success).one_or_none()
        if done is not None:
            return done
    with database() as session:
        # New, or removed by retention since. Without the success it is not kept either: nothing
        # would ever remove a prompt without pictures.
        prompt.ensure(session)
        done = session.scalars(success).one_or_none()
        if done is not None:
            session.commit()
            return done
        session.rollback()
        done = session.scalars(ledger.find_committed(job_id, attempt)).one_or_none()
        if done is None:
            raise LeaseGone
        return done
