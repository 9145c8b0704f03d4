"""The rules of uploads: check, re-encode, keep, list, and how much a key may keep."""

import asyncio
import contextlib
import tempfile
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from datetime import timedelta
from typing import IO, Any

from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncSession
from starlette.datastructures import UploadFile

from api.context import CommitUnknown, Resources, parse_id, require_row
from api.core.errors import Problem, bad_parameter
from api.core.fairness import acting_key
from api.core.principal import Principal
from api.core.serialization import Page, PageRequest
from api.images.schemas import Manifest, Provenance, Upload
from api.images.service import find, read_object_into
from shared.core import tenants
from shared.core.errors import StorageUnavailable
from shared.core.ids import encode_id, new_id
from shared.core.storage import upload_key
from shared.images import deletion, models, queries
from shared.images.formats import ImageDecoderUnavailable, ImageRefused
from shared.images.intake import ByteStream, CleanImage, ImageLimits, sanitize_image
from shared.images.provenance import read_marks

UPLOAD_REFUSAL = "upload_bytes_exceeded"
_UNRECORDED_KEPT = timedelta(hours=1)
"""By then a request has written its row, or never will."""

_WHEN_KEPT = 3600
"""Seconds: what is kept goes when somebody deletes it, or after days."""


async def check_uploads(resources: Resources, principal: Principal) -> None:
    """Return if the key may keep anything more; asked before the work of taking it in.

    Raises:
        Problem: 429.
    """
    if principal.quotas.upload_bytes is not None:
        async with resources.tenant_transaction(principal) as session:
            await _check_uploads(session, principal, 1)


@asynccontextmanager
async def upload_admitted(session: AsyncSession, principal: Principal) -> AsyncIterator[None]:
    """Within it, insert the row of an upload. Commit right behind it.

    Raises:
        Problem: 429.
    """
    yield
    if principal.quotas.upload_bytes is not None:
        await session.execute(tenants.take_turn(principal.key_id))
        await _check_uploads(session, principal, 0)


async def _check_uploads(session: AsyncSession, principal: Principal, more: int) -> None:
    limit = principal.quotas.upload_bytes
    kept = (await session.scalars(queries.sum_uploads(principal.key_id))).one()
    if limit is not None and kept + more > limit:
        detail = f"This key may keep {limit} bytes of uploads. Delete some, or wait."
        raise Problem(UPLOAD_REFUSAL, detail, headers={"Retry-After": str(_WHEN_KEPT)})


async def clean_image(
    resources: Resources, source: bytes | ByteStream, fit_side: int | None = None
) -> CleanImage:
    """Check and re-encode a client's image, in a thread; scaled down to fit, if need be.

    Raises:
        ImageRefused: the file is at fault.
        Problem: 503 when no decoder is free.
    """
    limits = ImageLimits(max_bytes=resources.settings.max_upload_bytes)
    try:
        return await resources.semaphores.decoders.run(
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


async def read_provenance(resources: Resources, file: IO[bytes], content_type: str) -> Provenance:
    """How a file says that a model made it, read in a process of its own.

    Raises:
        ImageRefused: reading it takes more than is allowed.
        Problem: 503 when no decoder is free.
    """
    limits = ImageLimits()
    try:
        marks = await resources.semaphores.decoders.run(
            resources.decoder_threads,
            acting_key.get(),
            limits.queue_s + limits.decoder_wall_s,
            read_marks,
            file,
            content_type,
            limits,
            resources.settings.provenance_trust_file,
        )
    except (ImageDecoderUnavailable, TimeoutError):
        raise Problem("decoder_unavailable") from None
    manifest, source_type = marks["manifest"], marks["digital_source_type"]
    state = manifest.pop("state") if manifest else "metadata" if source_type else "none"
    return Provenance(
        state=state if marks["was_read"] else "unread",
        digital_source_type=source_type,
        manifest=Manifest.model_validate(manifest) if manifest else None,
    )


async def provenance_of(resources: Resources, principal: Principal, image_id: str) -> Provenance:
    """How a stored image says that a model made it. The file is never whole in memory here.

    Raises:
        Problem: 404 for an unknown image or a missing file; 503 when storage is unavailable.
    """
    row = await find(resources, principal, image_id)
    with tempfile.TemporaryFile() as file:
        await read_object_into(resources, row.s3_key, file)
        try:
            return await read_provenance(resources, file, row.content_type)
        except ImageRefused as refusal:
            raise Problem("image_refused", str(refusal)) from None


async def put_unrecorded(
    resources: Resources, principal: Principal, key: str, put: Callable[..., None], *args: Any
) -> None:
    """Call `put`, which writes an object. Unless the transaction that writes its row executes
    `deletion.delete_pending_deletions`, the dispatcher deletes the object after an hour.

    Raises:
        StorageUnavailable: S3 is unavailable.
    """
    async with resources.tenant_transaction(principal) as session:
        scheduled = deletion.schedule_deletions(principal.tenant_id, [key], _UNRECORDED_KEPT)
        await session.execute(scheduled)
    await resources.on_storage(put, *args)


async def store_upload(
    resources: Resources, principal: Principal, clean: CleanImage
) -> dict[str, Any]:
    """Put a cleaned image into S3; the columns of its row, for the caller to insert.

    Raises:
        StorageUnavailable: S3 is unavailable.
    """
    upload_id = new_id()
    key = upload_key(upload_id)
    put = resources.storage.put
    await put_unrecorded(resources, principal, key, put, key, clean.data, clean.content_type)
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


async def insert_upload(session: AsyncSession, columns: dict[str, Any]) -> models.Upload:
    """The row of what `store_upload` has stored."""
    row = (await session.scalars(queries.insert_upload(columns))).one()
    await session.execute(
        deletion.delete_pending_deletions(columns["tenant_id"], [columns["s3_key"]])
    )
    return row


@asynccontextmanager
async def discarded_on_failure(
    resources: Resources, uploads: Sequence[Mapping[str, Any]]
) -> AsyncIterator[None]:
    """Within it, write the rows of these objects. Removes the objects if no row can name them."""
    try:
        yield
    except CommitUnknown:
        raise
    except (Problem, DBAPIError):
        await discard_uploads(resources, uploads)
        raise


async def discard_uploads(resources: Resources, uploads: Sequence[Mapping[str, Any]]) -> None:
    """Remove the objects of uploads whose rows were not written, also where the request is given
    up meanwhile; at worst they are left for an hour."""
    if not uploads:
        return
    keys = [upload["s3_key"] for upload in uploads]
    with contextlib.suppress(StorageUnavailable):
        await asyncio.shield(resources.on_storage(resources.storage.delete, keys))


async def accept_upload(resources: Resources, principal: Principal, file: UploadFile) -> Upload:
    """Keep a client's image for img2img.

    Raises:
        Problem: 422 when it is refused; 429 when the key may keep no more; 503 when storage,
            the database or decoders are unavailable.
    """
    await check_uploads(resources, principal)
    try:
        clean = await clean_image(resources, file.file)
    except ImageRefused as refusal:
        raise refused(refusal) from None
    columns = await store_upload(resources, principal, clean)
    async with (
        discarded_on_failure(resources, [columns]),
        resources.tenant_transaction(principal) as session,
        upload_admitted(session, principal),
    ):
        row = await insert_upload(session, columns)
    return serialize_upload(resources, row)


async def list_page(
    resources: Resources, principal: Principal, paging: PageRequest
) -> Page[Upload]:
    """One page of a tenant's uploads, newest first."""
    scope = ("uploads", principal.tenant_id)
    before = paging.position(*scope)
    async with resources.list_transaction(principal, paging.limit) as session:
        statement = queries.list_uploads(principal.tenant_id, paging.limit + 1, before)
        rows = (await session.scalars(statement)).all()
    return await paging.page(rows, lambda row: serialize_upload(resources, row), *scope)


async def get_upload(resources: Resources, principal: Principal, upload_id: str) -> Upload:
    """A tenant's upload."""
    row_id = parse_id("upl", upload_id, "upload")
    async with resources.tenant_transaction(principal) as session:
        row = await require_row(session, queries.get_upload(principal.tenant_id, row_id), "upload")
    return serialize_upload(resources, row)


def refused(refusal: ImageRefused) -> Problem:
    """An image that cannot be taken, as a problem of the form's field."""
    return bad_parameter("file", refusal.code, str(refusal), "image_refused")


def serialize_upload(resources: Resources, row: models.Upload) -> Upload:
    """The wire form of an upload."""
    return Upload.of(row, id=encode_id("upl", row.id), url=resources.storage.presign(row.s3_key))
