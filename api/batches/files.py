"""Files of prompts that are sent ahead, to make batches from them."""

import contextlib
import os

from starlette.datastructures import UploadFile

from api.batches.intake import sha256_of
from api.batches.schemas import BatchFile
from api.context import Resources, parse_id
from api.core.errors import Problem, not_found
from api.core.fairness import on_thread
from api.core.principal import Principal
from api.core.quotas import check_uploads, upload_admitted
from shared.batches import models as rows
from shared.batches import queries
from shared.core.errors import StorageUnavailable
from shared.core.ids import new_id, to_wire
from shared.core.storage import batch_file_key

_MAX_NAME = 200
_CONTENT_TYPE = "application/octet-stream"


async def keep(resources: Resources, principal: Principal, upload: UploadFile) -> BatchFile:
    """Put the file into S3 as it is; its lines are checked when a batch is made of it.

    Raises:
        Problem: 422 for an empty file, 429 when the key may keep no more, 503 when S3
            or the database is away.
    """
    await check_uploads(resources, principal)
    file = upload.file
    digest = await on_thread(sha256_of, file)
    size = file.seek(0, os.SEEK_END)
    if not size:
        raise Problem.invalid("/file", "empty", "The file is empty.")
    file.seek(0)
    file_id = new_id()
    key = batch_file_key(file_id)
    columns = {
        "id": file_id,
        "tenant_id": principal.tenant_id,
        "api_key_id": principal.key_id,
        "name": _clean_name(upload.filename),
        "content_type": _CONTENT_TYPE,
        "bytes": size,
        "sha256": digest,
        "s3_key": key,
    }
    try:
        await resources.on_storage(resources.storage.put_file, key, file, _CONTENT_TYPE)
    except StorageUnavailable:
        raise Problem("storage_unavailable") from None
    try:
        async with (
            resources.tenant_transaction(principal) as session,
            upload_admitted(session, principal),
        ):
            row = (await session.scalars(queries.insert_file(columns))).one()
    except BaseException:
        await _remove(resources, key)
        raise
    return present_file(row)


async def get(resources: Resources, principal: Principal, file_id: str) -> BatchFile:
    """A tenant's file."""
    row_id = parse_id("upl", file_id, "file")
    async with resources.tenant_transaction(principal) as session:
        asked = queries.get_file(principal.tenant_id, row_id)
        row = (await session.scalars(asked)).one_or_none()
    if row is None:
        raise not_found("file")
    return present_file(row)


async def delete(resources: Resources, principal: Principal, file_id: str) -> None:
    """Forget a file; batches made of it stay."""
    row_id = parse_id("upl", file_id, "file")
    async with resources.tenant_transaction(principal) as session:
        asked = queries.delete_file(principal.tenant_id, row_id)
        key = (await session.scalars(asked)).one_or_none()
    if key is None:
        raise not_found("file")
    await _remove(resources, key)


def present_file(row: rows.BatchFile) -> BatchFile:
    """The wire form of a file."""
    return BatchFile(
        id=to_wire("upl", row.id),
        name=row.name,
        bytes=row.bytes,
        sha256=row.sha256,
        created_at=row.created_at,
    )


async def _remove(resources: Resources, key: str) -> None:
    """At worst an object is left that nobody can name."""
    with contextlib.suppress(StorageUnavailable):
        await resources.on_storage(resources.storage.delete, [key])


def _clean_name(name: str | None) -> str:
    kept = "".join(character for character in name or "" if character.isprintable())
    return kept[-_MAX_NAME:] or "batch.jsonl"
