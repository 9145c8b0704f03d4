"""The rules of uploads: check, re-encode, keep, show."""

from starlette.datastructures import UploadFile

from api.deps import Resources, parse_id
from api.fairness import built
from api.principal import Principal
from api.problems import FieldError, Problem, not_found
from api.uploads.intake import clean_image, discard_upload, store_upload
from api.uploads.schemas import Upload
from api.usage.admission import check_uploads, upload_admitted
from api.wire import Page, decode_cursor, encode_cursor
from shared.gallery import models as rows
from shared.gallery import statements as gallery
from shared.ids import to_wire
from shared.images import ImageRefused


async def accept(resources: Resources, principal: Principal, file: UploadFile) -> Upload:
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
            row = (await session.scalars(gallery.insert_upload(columns))).one()
    except Problem:
        await discard_upload(resources, columns)
        raise
    return present(resources, row)


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
        asked = gallery.list_uploads(principal.tenant_id, limit + 1, before)
        found = (await session.scalars(asked)).all()
    page, has_more = found[:limit], len(found) > limit
    return Page(
        data=await built(lambda row: present(resources, row), page),
        has_more=has_more,
        next_cursor=encode_cursor(page[-1].id, *scope) if has_more else None,
    )


async def get(resources: Resources, principal: Principal, upload_id: str) -> Upload:
    """A tenant's upload."""
    row_id = parse_id("upl", upload_id, "upload")
    async with resources.tenant_transaction(principal) as session:
        statement = gallery.get_upload(principal.tenant_id, row_id)
        row = (await session.scalars(statement)).one_or_none()
    if row is None:
        raise not_found("upload")
    return present(resources, row)


def refused(refusal: ImageRefused) -> Problem:
    """A picture that cannot be taken, as a problem of the form's field."""
    error = FieldError(pointer=None, parameter="file", code=refusal.code, message=str(refusal))
    return Problem("image_refused", str(refusal), errors=[error])


def present(resources: Resources, row: rows.Upload) -> Upload:
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
