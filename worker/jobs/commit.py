"""Finish a job: write each image's receipt, encode and upload it, then commit them all.

What the GPU made is kept while Postgres or S3 is unavailable (see `worker.jobs.lease`), so that an
outage costs no second run.
"""

import hashlib
import io
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any
from uuid import UUID

from PIL import Image
from sqlalchemy import Select
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.orm import Session, sessionmaker

from shared.core.database import Given, autocommit
from shared.core.errors import StorageUnavailable
from shared.core.filters import Finding
from shared.core.ids import decode_id, encode_id, new_id
from shared.core.logging import get_logger
from shared.core.prompt_weights import GRAMMAR
from shared.core.settings import Provenance, darkroom_version
from shared.core.storage import Storage, image_key, thumbnail_key
from shared.images.provenance import XMP
from shared.images.receipts import RECEIPT_VERSION, exif_block, png_chunks
from shared.jobs.models import DEFAULT_MASK_BLUR, REPRODUCES, Job
from shared.jobs.queries import endings
from worker.engine.interface import GeneratedImage
from worker.jobs.inputs import PromptRow
from worker.jobs.lease import Lease, LeaseLost, retry_database, retry_outage

log = get_logger(__name__)
CONTENT_TYPES = {"png": "image/png", "webp": "image/webp", "jpeg": "image/jpeg"}

THUMBNAIL_SIDE = 256
"""Pixels of a thumbnail's longer side."""

_ZLIB_RLE = 3
"""Level 1 with the run-length strategy takes 0.30 of Pillow's default time and is no larger."""
_JPEG_QUALITY = 95
_FULL_COLOR = 90
"""From this quality on, JPEG keeps colors at the full resolution."""


# --- The receipt ---


def make_receipt(
    job: Job, index: int, generated: GeneratedImage, provenance: Provenance
) -> dict[str, Any]:
    """Everything that decides the bytes of image `index`, and where it was made."""
    facts = generated.facts
    return {
        "receipt_version": RECEIPT_VERSION,
        "kind": job.kind,
        "prompt": job.prompt,
        "negative_prompt": job.negative_prompt,
        "seed": job.seeds[index],
        "width": job.width,
        "height": job.height,
        "steps": job.steps,
        "executed_steps": generated.steps,
        "guidance_scale": job.guidance_scale,
        "true_cfg_scale": job.true_cfg_scale,
        "strength": job.strength,
        "resize_mode": job.resize_mode,
        "init_image_sha256": job.init_image["sha256"] if job.init_image else None,
        **_mask_facts(job),
        "output_format": job.output_format,
        "provenance": provenance,
        "loras": [
            {"name": lora.name, "sha256": lora.sha256, "scale": lora.scale} for lora in facts.loras
        ],
        **job.options,
        **_control_facts(job, generated),
        **_reference_facts(generated),
        **_second_pass(generated),
        **({"prompt_grammar": GRAMMAR} if job.options.get("prompt_syntax") == "weighted" else {}),
        "scheduler": {
            "name": job.scheduler,
            "class": facts.scheduler_class,
            "config": dict(facts.scheduler_config),
        },
        "model": {
            "name": facts.model,
            "content_hash": facts.content_hash,
            "revision": facts.revision,
        },
        "dtype": facts.dtype,
        "device": facts.device,
        "batch_size": facts.batch_size,
        "agreeing_batch_sizes": list(facts.agreeing_sizes),
        "cpu_threads": facts.cpu_threads,
        "speed": dict(facts.speed),
        "notes": list(facts.notes),
        "software": {
            "darkroom": darkroom_version(),
            "torch": facts.torch_version,
            "diffusers": facts.diffusers_version,
            "cuda": facts.cuda_version,
        },
    }


def _mask_facts(job: Job) -> dict[str, Any]:
    """What a receipt says of a mask even where the job has left it to the default."""
    if job.kind != "inpaint":
        return {}
    mask = (job.init_image or {}).get("mask")
    return {
        "mask_sha256": mask["sha256"] if mask else None,
        "masked_content": "original",
        "mask_blur": DEFAULT_MASK_BLUR,
        "padding_mask_crop": None,
        "preserve_unmasked": True,
    }


def _control_facts(job: Job, generated: GeneratedImage) -> dict[str, Any]:
    """Which ControlNets acted, and on what they saw."""
    nets = generated.facts.controls
    if not nets:
        return {}
    kept = ("name", "scale", "start", "end", "preprocess", "low", "high")
    return {
        "controls": [
            {name: control[name] for name in kept}
            | {"sha256": net.sha256, "image_sha256": control["sha256"]}
            for control, net in zip(job.options["controls"], nets, strict=True)
        ]
    }


def _reference_facts(generated: GeneratedImage) -> dict[str, Any]:
    """Which images were looked at, and what read them."""
    facts = generated.facts
    if not facts.references:
        return {}
    return {
        "references": [
            {"sha256": reference.sha256, "scale": reference.scale} for reference in facts.references
        ],
        "ip_adapter": {"sha256": facts.ip_adapter},
    }


def _second_pass(generated: GeneratedImage) -> dict[str, Any]:
    """What differs, or may, from the first."""
    if generated.hires is None:
        return {}
    facts = generated.hires.facts
    return {
        "second_pass": {
            "executed_steps": generated.hires.steps,
            "scheduler_config": dict(facts.scheduler_config),
            "dtype": facts.dtype,
            "batch_size": facts.batch_size,
            "compile": facts.speed.get("compile"),
            "notes": list(facts.notes),
        }
    }


# --- Files ---


@dataclass(frozen=True)
class EncodedImage:
    """An image as files."""

    content_type: str
    body: bytes
    thumbnail_webp: bytes
    pixel_sha256: str
    """Of the pixels in `body`, decoded to 8-bit RGB, row by row."""


def encode_image(
    image: Image.Image,
    output_format: str,
    receipt: dict[str, Any],
    quality: int | None = None,
    xmp: str = "",
) -> EncodedImage:
    """Encode an RGB image as ``png``, ``webp`` or ``jpeg``.

    Args:
        quality: 1 to 100, of JPEG (95 by default) and WebP (lossless by default).
    """
    buffer = io.BytesIO()
    pixels = image
    if output_format == "png":
        image.save(
            buffer,
            "PNG",
            compress_level=1,
            compress_type=_ZLIB_RLE,
            pnginfo=png_chunks(receipt, xmp),
        )
    elif output_format == "webp":
        how = {"lossless": True, "quality": 0} if quality is None else {"quality": quality}
        blocks = {"exif": exif_block(receipt).tobytes(), "xmp": xmp.encode()}
        image.save(buffer, "WEBP", **how, method=0, **blocks)
        if quality is not None:
            pixels = Image.open(buffer).convert("RGB")
    else:
        quality = _JPEG_QUALITY if quality is None else quality
        subsampling = 0 if quality >= _FULL_COLOR else 2
        blocks = {"exif": exif_block(receipt).tobytes(), "xmp": xmp.encode()}
        image.save(buffer, "JPEG", quality=quality, subsampling=subsampling, **blocks)
        pixels = Image.open(buffer)
    return EncodedImage(
        CONTENT_TYPES[output_format],
        buffer.getvalue(),
        _thumbnail(image),
        hashlib.sha256(pixels.tobytes()).hexdigest(),
    )


def _thumbnail(image: Image.Image) -> bytes:
    small = image.copy()
    small.thumbnail((THUMBNAIL_SIDE, THUMBNAIL_SIDE), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    small.save(buffer, "WEBP", quality=82, method=2)
    return buffer.getvalue()


# --- The image's row ---


@dataclass(frozen=True)
class FinishedImage:
    """One finished image of a job: its row, and its files."""

    row: dict[str, Any]
    encoded: EncodedImage

    @property
    def keys(self) -> tuple[str, str]:
        """The keys of its objects in S3."""
        return self.row["s3_key"], self.row["thumbnail_s3_key"]

    def with_file(self, body: bytes) -> "FinishedImage":
        """The same pixels in another file."""
        facts = {"bytes": len(body), "sha256": hashlib.sha256(body).hexdigest()}
        return FinishedImage(self.row | facts, replace(self.encoded, body=body))

    def event(self) -> dict[str, Any]:
        """What a client's event stream says of it."""
        row = self.row
        return {
            "id": encode_id("img", row["id"]),
            "index": row["index"],
            "seed": row["seed"],
            "sha256": row["sha256"],
        }


def refused_image(
    job: Job, index: int, generated: GeneratedImage, refusal: Finding
) -> dict[str, Any]:
    """What stays on record of an image that a filter has refused."""
    return {
        "index": index,
        "seed": job.seeds[index],
        "filter": refusal.filter,
        "reason": refusal.reason,
        "gpu_seconds": generated.gpu_seconds,
    }


def finish_image(
    job: Job,
    index: int,
    generated: GeneratedImage,
    provenance: Provenance,
    *,
    marks: Sequence[Finding] = (),
) -> FinishedImage:
    """Encode one image with its receipt and make its row; `marks` are those of filters."""
    receipt = make_receipt(job, index, generated, provenance)
    if marks:
        receipt["marks"] = [mark._asdict() for mark in marks]
    encoded = encode_image(
        Image.fromarray(generated.pixels),
        job.output_format,
        receipt,
        job.options.get("output_quality"),
        "" if provenance == "off" else XMP,
    )
    key = image_key(job.session_id, job.id, job.attempt, index, encoded.content_type)
    row = {
        "id": new_id(),
        "tenant_id": job.tenant_id,
        "job_id": job.id,
        "session_id": job.session_id,
        "index": index,
        "attempt": job.attempt,
        "seed": job.seeds[index],
        "width": generated.pixels.shape[1],
        "height": generated.pixels.shape[0],
        "content_type": encoded.content_type,
        "bytes": len(encoded.body),
        "sha256": hashlib.sha256(encoded.body).hexdigest(),
        "pixel_sha256": encoded.pixel_sha256,
        "s3_key": key,
        "thumbnail_s3_key": thumbnail_key(key),
        "receipt": receipt,
        "gpu_seconds": generated.gpu_seconds,
    }
    if (original := job.job_metadata.get(REPRODUCES)) is not None:
        row["reproduces"] = decode_id("img", original)
    return FinishedImage(row, encoded)


# --- Upload and commit ---


def upload(storage: Storage, image: FinishedImage, lease: Lease) -> None:
    """Put an image and its thumbnail, for as long as the lease and the retries last.

    One after the other: a store over a file system makes the attempt's folder for the first, and
    two at once have been seen to make it twice, and then to lose one of the objects for a while
    (rclone 1.75, four in a hundred).

    Raises:
        StorageUnavailable: S3 stayed unavailable.
        LeaseLost: the job was stopped meanwhile.
    """
    row, encoded = image.row, image.encoded
    for key, body, content_type in (
        (row["s3_key"], encoded.body, encoded.content_type),
        (row["thumbnail_s3_key"], encoded.thumbnail_webp, "image/webp"),
    ):
        retry_outage(partial(storage.put, key, body, content_type), lease)


def commit(
    database: sessionmaker[Session],
    prompt: PromptRow,
    job: Job,
    images: Sequence[FinishedImage],
    *,
    filtered: Sequence[dict[str, Any]] = (),
    warnings: Sequence[dict[str, str]],
    lease: Lease,
) -> Job:
    """Commit images, receipts, embedding and state together, if the attempt is still ours.

    Raises:
        LeaseLost: it is not; nothing was written.
        SQLAlchemyError: Postgres stayed unavailable.
    """
    gpu_seconds = sum(image.row["gpu_seconds"] for image in images)
    gpu_seconds += sum(image["gpu_seconds"] for image in filtered)
    rows = [image.row for image in images]
    success = endings.succeed(
        job.id,
        lease.attempt,
        gpu_seconds,
        warnings,
        images=rows,
        prompt_sha256=prompt.sha256,
        filtered=filtered,
    )

    def one_try() -> Job:
        prompt.look_up(database)
        return commit_success(database, job.id, lease.attempt, success, prompt)

    done = retry_database(one_try, lease)
    prompt.committed()
    return done


def commit_success(
    database: sessionmaker[Session],
    job_id: UUID,
    attempt: int,
    success: Given[Select[Job]],
    prompt: PromptRow,
) -> Job:
    """Commit the job's success with its images: one statement where the prompt is on record.

    Safe to repeat: after an earlier try whose COMMIT was not answered it finds the job done.

    Raises:
        LeaseLost: the attempt is not the running one; nothing was written.
        SQLAlchemyError: Postgres is unavailable, or refuses.
    """
    if prompt.known:
        with autocommit(database) as session:
            done = session.scalars(*success).one_or_none()
        if done is not None:
            return done
    with database() as session:
        # New, or removed by retention since. Without the success it is not kept either: nothing
        # would ever remove a prompt without images.
        prompt.ensure(session)
        done = session.scalars(*success).one_or_none()
        if done is not None:
            session.commit()
            return done
        session.rollback()
        done = session.scalars(endings.find_committed(job_id, attempt)).one_or_none()
        if done is None:
            raise LeaseLost
        return done


def delete_uncommitted(
    database: sessionmaker[Session],
    storage: Storage,
    job_id: UUID,
    attempt: int,
    keys: Sequence[str],
) -> None:
    """Remove an attempt's objects, if the database says that no row can name them any more.

    A lease that looks lost may have been used: the COMMIT went through and its answer did not.
    What is left behind here, the sweep of attempts removes later.
    """
    try:
        with database.begin() as session:
            statement = endings.attempt_can_commit(job_id, attempt)
            if session.scalars(statement).one_or_none() is None:
                storage.delete(keys)
    except (StorageUnavailable, SQLAlchemyError) as error:
        log.warning("objects_left_behind", error=type(error).__name__, keys=len(keys))


def charge_late(
    database: sessionmaker[Session], job_id: UUID, attempt: int, gpu_seconds: float
) -> None:
    """Charge an attempt that has been ended without its device time, if the database answers."""
    try:
        with database.begin() as session:
            session.execute(endings.charge_late(job_id, attempt, gpu_seconds))
    except SQLAlchemyError as error:
        log.warning("charge_failed", error=type(error).__name__, gpu_seconds=gpu_seconds)
