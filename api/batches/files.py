"""Uploaded files of prompts, to make batches from."""

import os

from starlette.datastructures import UploadFile

from api.batches.request import clean_name, sha256_of
from api.batches.schemas import BatchFile
from api.context import Resources, parse_id, require_row
from api.core.errors import Problem
from api.core.fairness import on_thread
from api.core.principal import Principal
from api.images.deletion import remove_objects
from api.images.uploads import (
    check_uploads,
    discarded_on_failure,
    put_unrecorded,
    upload_admitted,
)
from shared.batches import models as rows
from shared.batches import queries
from shared.core.ids import encode_id, new_id
from shared.core.storage import batch_file_key
from shared.images import deletion

_CONTENT_TYPE = "application/octet-stream"


async def keep(resources: Resources, principal: Principal, upload: UploadFile) -> BatchFile:
    """Put the file into S3 as it is; its lines are checked when a batch is made of it.

    Raises:
        Problem: 422 for an empty file, 429 when the key may keep no more, 503 when the database is
            away.
        StorageUnavailable: S3 is unavailable.
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
        "name": clean_name(upload.filename) or "batch.jsonl",
        "content_type": _CONTENT_TYPE,
        "bytes": size,
        "sha256": digest,
        "s3_key": key,
    }
    put = resources.storage.put_file
    await put_unrecorded(resources, principal, key, put, key, file, _CONTENT_TYPE)
    async with (
        discarded_on_failure(resources, [columns]),
        resources.tenant_transaction(principal) as session,
        upload_admitted(session, principal),
    ):
        row = (await session.scalars(queries.insert_file(columns))).one()
        await session.execute(deletion.delete_pending_deletions(principal.tenant_id, [key]))
    return serialize_file(row)


async def get(resources: Resources, principal: Principal, file_id: str) -> BatchFile:
    """A tenant's file."""
    row_id = parse_id("upl", file_id, "file")
    async with resources.tenant_transaction(principal) as session:
        row = await require_row(session, queries.get_file(principal.tenant_id, row_id), "file")
    return serialize_file(row)


async def delete(resources: Resources, principal: Principal, file_id: str) -> None:
    """Delete a file; batches made of it stay."""
    row_id = parse_id("upl", file_id, "file")
    async with resources.tenant_transaction(principal) as session:
        key = await require_row(session, queries.delete_file(principal.tenant_id, row_id), "file")
        await session.execute(deletion.schedule_deletions(principal.tenant_id, [key]))
    await remove_objects(resources, principal, [key])


def serialize_file(row: rows.BatchFile) -> BatchFile:
    """The wire form of a file."""
    return BatchFile.of(row, id=encode_id("upl", row.id))
