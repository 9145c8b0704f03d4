"""The end of a job: encode its images, upload them, and commit everything in one transaction."""

import hashlib
import io
from collections.abc import Sequence
from concurrent.futures import wait
from dataclasses import dataclass, field
from functools import partial
from typing import Any
from uuid import UUID

from PIL import Image
from sqlalchemy import Select
from sqlalchemy.orm import Session, sessionmaker

from shared.core.database import one_statement
from shared.core.ids import new_id, to_wire
from shared.core.storage import Storage, image_key, thumbnail_key
from shared.images.receipts import exif_block, png_chunks
from shared.jobs.models import Job
from shared.jobs.queries import endings
from worker.engine.interface import GeneratedImage, Ticket
from worker.jobs.inputs import PromptRow
from worker.jobs.lease import Lease
from worker.jobs.receipt import make_receipt
from worker.jobs.retry import LeaseGone, with_ledger, with_storage

CONTENT_TYPES = {"png": "image/png", "webp": "image/webp", "jpeg": "image/jpeg"}


THUMBNAIL_SIDE = 256
"""Pixels of a thumbnail's longer side."""


_ZLIB_RLE = 3
"""Level 1 with the run-length strategy takes 0.30 of Pillow's default time and is no larger."""


@dataclass(frozen=True)
class EncodedImage:
    """A picture as files."""

    content_type: str
    body: bytes
    thumbnail_webp: bytes


def encode_image(picture: Image.Image, output_format: str, receipt: dict[str, Any]) -> EncodedImage:
    """Encode an RGB picture as ``png`` (lossless), ``webp`` (lossless) or ``jpeg`` (quality 95)."""
    buffer = io.BytesIO()
    if output_format == "png":
        picture.save(
            buffer,
            "PNG",
            compress_level=1,
            compress_type=_ZLIB_RLE,
            pnginfo=png_chunks(receipt),
        )
    elif output_format == "webp":
        picture.save(
            buffer, "WEBP", lossless=True, quality=0, method=0, exif=exif_block(receipt).tobytes()
        )
    else:
        picture.save(buffer, "JPEG", quality=95, subsampling=0, exif=exif_block(receipt).tobytes())
    return EncodedImage(CONTENT_TYPES[output_format], buffer.getvalue(), _thumbnail(picture))


def _thumbnail(picture: Image.Image) -> bytes:
    small = picture.copy()
    small.thumbnail((THUMBNAIL_SIDE, THUMBNAIL_SIDE), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    small.save(buffer, "WEBP", quality=82, method=2)
    return buffer.getvalue()


# What the GPU made is kept in hand while Postgres or S3 is away (see `worker.jobs.retry`), so
# that an outage costs no second run.


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
    success = endings.succeed(
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
        done = session.scalars(endings.find_committed(job_id, attempt)).one_or_none()
        if done is None:
            raise LeaseGone
        return done


_BILL_SECONDS = 2.0
"""What a stopped attempt waits to learn what it has used: canceled rows leave with the tick."""


@dataclass
class InHand:
    """Images that the engine makes, and pictures that are in S3."""

    tickets: list[Ticket] = field(default_factory=list)
    pictures: list[Picture] = field(default_factory=list)

    def stop(self) -> float:
        """Take back what is not made yet; the device seconds that all of it has used."""
        for ticket in self.tickets:
            ticket.cancel()
        wait([ticket.future for ticket in self.tickets], _BILL_SECONDS)
        return sum(ticket.gpu_seconds for ticket in self.tickets)
