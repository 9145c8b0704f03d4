"""The rules of images and uploads: check, re-encode, keep, find, show, read."""

import contextlib
from typing import Any

from starlette.datastructures import UploadFile

from api.context import Resources, parse_id
from api.core.errors import FieldError, Problem, not_found
from api.core.fairness import acting_key, built
from api.core.principal import Principal
from api.core.quotas import check_uploads, upload_admitted
from api.core.serialization import Page, decode_cursor, encode_cursor
from api.images.schemas import Image, ImageLinks, Upload
from api.jobs.serialize import image_fields
from shared.core.errors import StorageUnavailable
from shared.core.ids import new_id, to_wire
from shared.core.storage import EXTENSIONS, ObjectMissing, StoredObject, upload_key
from shared.images import (
    CleanImage,
    ImageDecoderUnavailable,
    ImageLimits,
    ImageRefused,
    models,
    queries,
    sanitize_image,
)
from shared.images.intake import ByteStream


async def find(resources: Resources, principal: Principal, image_id: str) -> models.Image:
    """A tenant's image.

    Raises:
        Problem: 404.
    """
    row_id = parse_id("img", image_id, "image")
    async with resources.tenant_transaction(principal) as session:
        statement = queries.get_image(principal.tenant_id, row_id)
        row = (await session.scalars(statement)).one_or_none()
    if row is None:
        raise not_found("image")
    return row


def present(resources: Resources, row: models.Image) -> Image:
    """The wire form of an image."""
    return Image(**fields(resources, row))


def fields(resources: Resources, row: models.Image) -> dict[str, Any]:
    """The fields of an `Image`."""
    image_id, job_id = to_wire("img", row.id), to_wire("job", row.job_id)
    base = resources.settings.public_url.rstrip("/")
    here = f"{base}/v1/images/{image_id}"
    return {
        **image_fields(row, resources.storage),
        "job_id": job_id,
        "session_id": row.session_id,
        "model": row.receipt["model"]["name"],
        "prompt": row.receipt["prompt"],
        "negative_prompt": row.receipt.get("negative_prompt"),
        "gpu_seconds": row.gpu_seconds,
        "created_at": row.created_at,
        "links": ImageLinks(
            self=here,
            content=f"{here}/content",
            thumbnail=f"{here}/thumbnail",
            receipt=f"{here}/receipt",
            job=f"{base}/v1/jobs/{job_id}",
        ),
    }


def file_name(row: models.Image) -> str:
    """What a downloaded picture is called: it leads back to its image and seed."""
    return f"{to_wire('img', row.id)}-{row.seed}.{EXTENSIONS[row.content_type]}"


_OBJECT_SECONDS = 15.0
"""For one picture's file; clients give up after some 30."""


async def read_object(resources: Resources, key: str) -> StoredObject:
    """A picture's file.

    Raises:
        Problem: 404 when S3 no longer has it, 503 when S3 is away.
    """
    try:
        return await resources.on_storage(resources.storage.get, key, seconds=_OBJECT_SECONDS)
    except ObjectMissing:
        raise Problem("object_missing") from None
    except StorageUnavailable:
        raise Problem("storage_unavailable") from None


async def clean_image(
    resources: Resources, source: bytes | ByteStream, fit_side: int | None = None
) -> CleanImage:
    """Check and re-encode a client's picture, in a thread; scaled down to fit, if need be.

    Raises:
        ImageRefused: the file is at fault.
        Problem: 503 when no decoder is free.
    """
    limits = ImageLimits(max_bytes=resources.settings.max_upload_bytes)
    try:
        return await resources.gates.decoders.run(
            resources.decoder_threads,
            acting_key.get(),
            limits.queue_s + limits.decoder_wall_s,
            sanitize_image,
            source,
            limits,
            fit_side,
        )
    except (ImageDecoderUnavailable, TimeoutError):
        raise Problem("decoder_unavailable") from None


async def store_upload(
    resources: Resources, principal: Principal, clean: CleanImage
) -> dict[str, Any]:
    """Put a cleaned picture into S3; the columns of its row, for the caller to insert.

    Raises:
        Problem: 503 when S3 is away.
    """
    upload_id = new_id()
    key = upload_key(upload_id)
    try:
        await resources.on_storage(resources.storage.put, key, clean.data, clean.content_type)
    except StorageUnavailable:
        raise Problem("storage_unavailable") from None
    return {
        "id": upload_id,
        "tenant_id": principal.tenant_id,
        "api_key_id": principal.key_id,
        "width": clean.width,
        "height": clean.height,
        "content_type": clean.content_type,
        "bytes": len(clean.data),
        "sha256": clean.sha256,
        "s3_key": key,
    }


async def discard_upload(resources: Resources, columns: dict[str, Any]) -> None:
    """Remove the object of an upload whose row was not written; at worst an orphan is left."""
    with contextlib.suppress(StorageUnavailable):
        await resources.on_storage(resources.storage.delete, [columns["s3_key"]])


async def accept_upload(resources: Resources, principal: Principal, file: UploadFile) -> Upload:
    """Keep a client's picture for img2img.

    Raises:
        Problem: 422 when it is refused; 429 when the key may keep no more; 503 when storage,
            the database or decoders are away.
    """
    await check_uploads(resources, principal)
    try:
        clean = await clean_image(resources, file.file)
    except ImageRefused as refusal:
        raise refused(refusal) from None
    columns = await store_upload(resources, principal, clean)
    try:
        async with (
            resources.tenant_transaction(principal) as session,
            upload_admitted(session, principal),
        ):
            row = (await session.scalars(queries.insert_upload(columns))).one()
    except Problem:
        await discard_upload(resources, columns)
        raise
    return present_upload(resources, row)


async def list_page(
    resources: Resources, principal: Principal, limit: int, after: str | None
) -> Page[Upload]:
    """One page of a tenant's uploads, newest first."""
    scope = ("uploads", principal.tenant_id)
    before = decode_cursor(after, *scope) if after is not None else None
    async with (
        resources.listing(principal, limit),
        resources.tenant_transaction(principal) as session,
    ):
        asked = queries.list_uploads(principal.tenant_id, limit + 1, before)
        found = (await session.scalars(asked)).all()
    page, has_more = found[:limit], len(found) > limit
    return Page(
        data=await built(lambda row: present_upload(resources, row), page),
        has_more=has_more,
        next_cursor=encode_cursor(page[-1].id, *scope) if has_more else None,
    )


async def get_upload(resources: Resources, principal: Principal, upload_id: str) -> Upload:
    """A tenant's upload."""
    row_id = parse_id("upl", upload_id, "upload")
    async with resources.tenant_transaction(principal) as session:
        statement = queries.get_upload(principal.tenant_id, row_id)
        row = (await session.scalars(statement)).one_or_none()
    if row is None:
        raise not_found("upload")
    return present_upload(resources, row)


def refused(refusal: ImageRefused) -> Problem:
    """A picture that cannot be taken, as a problem of the form's field."""
    error = FieldError(pointer=None, parameter="file", code=refusal.code, message=str(refusal))
    return Problem("image_refused", str(refusal), errors=[error])


def present_upload(resources: Resources, row: models.Upload) -> Upload:
    """The wire form of an upload."""
    return Upload(
        id=to_wire("upl", row.id),
        width=row.width,
        height=row.height,
        content_type=row.content_type,
        bytes=row.bytes,
        sha256=row.sha256,
        url=resources.storage.presign(row.s3_key),
        created_at=row.created_at,
    )
