"""HTTP of images, uploads, stars and deletion."""

from contextlib import nullcontext
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Path, Query, Request, Response
from fastapi.responses import JSONResponse, RedirectResponse
from starlette.datastructures import UploadFile

from api.context import Res
from api.core.auth import ImagesRead, ImagesWrite, JobsRead, JobsWrite
from api.core.bodies import FILE_SCHEMA, read_file
from api.core.errors import not_found, responses
from api.core.quotas import REFUSALS, UPLOAD_REFUSAL
from api.core.serialization import Page, PageLimit, json_answer
from api.core.streams import MAX_WAIT, parse_wait
from api.files import FileConditions, file_answer
from api.images import deletion, service
from api.images.inspect import inspect as inspect_picture
from api.images.schemas import Deleted, Image, Inspection, Reproduction, Upload
from api.jobs.reproduce import reproduce as reproduce_image
from api.jobs.routes import JobId, Prefer

router = APIRouter(prefix="/v1/images", tags=["images"])


ImageId = Annotated[str, Path(description="`img_…`", examples=["img_01jd4zk3v8e0x9m5q7r2t6w8ya"])]


Proxy = Annotated[bool, Query(description="true: through the API instead of a redirect.")]


Download = Annotated[bool, Query(description="true: as an attachment with a file name.")]


_FOR_EVER = "private, max-age=31536000, immutable"
"""A picture never changes."""


_FILE_RESPONSES: dict[int | str, dict[str, Any]] = {
    200: {
        "description": "The file, with `proxy=1`.",
        "content": {
            "image/png": {"schema": {"type": "string", "format": "binary"}},
            "image/webp": {"schema": {"type": "string", "format": "binary"}},
            "image/jpeg": {"schema": {"type": "string", "format": "binary"}},
        },
    },
    206: {"description": "With `proxy=1`: the part that `Range` asks for."},
    302: {"description": "To a URL in object storage that is good for some minutes."},
    304: {"description": "With `proxy=1`: the file has the ETag in `If-None-Match`."},
    **responses(
        "insufficient_scope",
        "not_found",
        "object_missing",
        "range_not_satisfiable",
        "validation_failed",
        "database_unavailable",
        "storage_unavailable",
    ),
}


@router.get(
    "/{image_id}",
    operation_id="images.get",
    summary="Get an image",
    response_class=Response,
    responses={
        200: {"model": Image},
        **responses("insufficient_scope", "not_found", "database_unavailable"),
    },
)
async def get(resources: Res, principal: ImagesRead, image_id: ImageId) -> Response:
    """An image's facts and URLs."""
    row = await service.find(resources, principal, image_id)
    return json_answer(service.present(resources, row))


@router.get(
    "/{image_id}/content",
    operation_id="images.content",
    summary="Read an image's file",
    response_class=Response,
    responses=_FILE_RESPONSES,
)
async def content(
    *,
    resources: Res,
    principal: ImagesRead,
    image_id: ImageId,
    conditions: FileConditions,
    proxy: Proxy = False,
    download: Download = False,
) -> Response:
    """Redirects to object storage, or sends the file itself with `proxy=1`."""
    row = await service.find(resources, principal, image_id)
    name = service.file_name(row)
    if not proxy:
        url = resources.storage.presign(row.s3_key, name if download else None)
        return RedirectResponse(url, 302)
    headers = {
        "Cache-Control": _FOR_EVER,
        "ETag": f'"{row.sha256}"',
        "Content-Disposition": f'{"attachment" if download else "inline"}; filename="{name}"',
    }
    if conditions.has_it(headers["ETag"]):
        return Response(status_code=304, headers=headers)
    stored = await service.read_object(resources, row.s3_key)
    # The type is the one on record, never one that storage or a client names.
    return file_answer(stored.body, row.content_type, headers, conditions)


@router.get(
    "/{image_id}/thumbnail",
    operation_id="images.thumbnail",
    summary="Read an image's thumbnail",
    response_class=Response,
    responses=_FILE_RESPONSES,
)
async def thumbnail(
    *,
    resources: Res,
    principal: ImagesRead,
    image_id: ImageId,
    conditions: FileConditions,
    proxy: Proxy = False,
) -> Response:
    """A small WebP, by the same ways as the file."""
    row = await service.find(resources, principal, image_id)
    if not proxy:
        return RedirectResponse(resources.storage.presign(row.thumbnail_s3_key), 302)
    headers = {"Cache-Control": _FOR_EVER, "ETag": f'"{row.sha256}-thumbnail"'}
    if conditions.has_it(headers["ETag"]):
        return Response(status_code=304, headers=headers)
    stored = await service.read_object(resources, row.thumbnail_s3_key)
    return file_answer(stored.body, "image/webp", headers, conditions)


@router.get(
    "/{image_id}/receipt",
    operation_id="images.receipt",
    summary="Get an image's receipt",
    response_class=Response,
    responses={
        200: {"description": "The receipt, as it is in the picture's `darkroom` chunk."},
        **responses("insufficient_scope", "not_found", "database_unavailable"),
    },
)
async def receipt(resources: Res, principal: ImagesRead, image_id: ImageId) -> Response:
    """How the picture was made: enough to make it again."""
    row = await service.find(resources, principal, image_id)
    return JSONResponse(row.receipt)


@router.post(
    "/{image_id}/reproduce",
    operation_id="images.reproduce",
    summary="Make an image again and compare",
    response_class=Response,
    responses={
        200: {"model": Reproduction, "description": "Made and compared."},
        202: {
            "model": Reproduction,
            "description": "Not finished yet: POST to `Location` (`links.again`) to go on.",
        },
        **responses(
            "insufficient_scope",
            "not_found",
            "not_reproducible",
            "database_unavailable",
            "storage_unavailable",
            "too_many_waits",
            *REFUSALS,
        ),
    },
)
async def reproduce(
    *,
    request: Request,
    resources: Res,
    principal: JobsWrite,
    image_id: ImageId,
    job: Annotated[
        str | None, Query(description="Go on with this job instead of beginning one.")
    ] = None,
    prefer: Prefer = None,  # noqa: ARG001 - documents the header that parse_wait reads
) -> Response:
    """Runs the receipt again, at the recorded rows, and waits up to 60 s (`Prefer: wait=n`).

    May be repeated: while a job that makes this image again is unfinished, no second one is begun.
    """
    asked = parse_wait(request)
    seconds = MAX_WAIT if asked is None else asked
    with resources.waits.hold(principal.key_id, request.scope) if seconds else nullcontext():
        result = await reproduce_image(
            resources, principal, request, image_id=image_id, job_id=job, seconds=seconds
        )
    headers = {} if asked is None else {"Preference-Applied": f"wait={asked}"}
    if result.verdict is not None:
        return json_answer(result, 200, headers)
    headers |= {"Location": result.links.again, "Retry-After": "1"}
    return json_answer(result, 202, headers)


@router.post(
    "/inspect",
    operation_id="images.inspect",
    summary="Read the receipt in a picture",
    response_class=Response,
    responses={
        200: {"model": Inspection},
        **responses(
            "malformed_request",
            "insufficient_scope",
            "body_too_large",
            "unsupported_media_type",
            "validation_failed",
            "image_refused",
            "receipt_missing",
            "database_unavailable",
        ),
    },
    openapi_extra=FILE_SCHEMA,
)
async def inspect(
    resources: Res, principal: ImagesRead, file: Annotated[UploadFile, Depends(read_file)]
) -> Response:
    """What a picture made by Darkroom says of itself; nothing of it is kept."""
    return json_answer(await inspect_picture(resources, principal, file))


uploads_router = APIRouter(prefix="/v1/uploads", tags=["uploads"])


UploadId = Annotated[str, Path(description="`upl_…`")]


@uploads_router.post(
    "",
    operation_id="uploads.create",
    summary="Upload an initial image",
    status_code=201,
    response_class=Response,
    responses={
        201: {"model": Upload},
        **responses(
            "malformed_request",
            "insufficient_scope",
            "body_too_large",
            "unsupported_media_type",
            "validation_failed",
            "image_refused",
            UPLOAD_REFUSAL,
            "database_unavailable",
            "storage_unavailable",
            "decoder_unavailable",
        ),
    },
    openapi_extra=FILE_SCHEMA,
)
async def create_upload(
    resources: Res, principal: JobsWrite, file: Annotated[UploadFile, Depends(read_file)]
) -> Response:
    """PNG, JPEG or WebP up to 10 MB, one frame, 64 to 4096 pixels a side.

    The picture is decoded, turned upright, reduced to RGB and encoded anew; nothing else of the
    file is kept. Give its id as `init_image` of a job.
    """
    upload = await service.accept_upload(resources, principal, file)
    return json_answer(upload, 201, {"Location": f"/v1/uploads/{upload.id}"})


@uploads_router.get(
    "",
    operation_id="uploads.list",
    summary="List uploads",
    response_class=Response,
    responses={
        200: {"model": Page[Upload]},
        **responses(
            "insufficient_scope", "validation_failed", "malformed_cursor", "database_unavailable"
        ),
    },
)
async def list_uploads(
    resources: Res,
    principal: JobsRead,
    limit: PageLimit = 50,
    after: Annotated[str | None, Query(description="`next_cursor` of the page before.")] = None,
) -> Response:
    """Your tenant's initial images, newest first, those that came with a job too."""
    return json_answer(await service.list_page(resources, principal, limit, after))


@uploads_router.get(
    "/{upload_id}",
    operation_id="uploads.get",
    summary="Get an upload",
    response_class=Response,
    responses={
        200: {"model": Upload},
        **responses("insufficient_scope", "not_found", "database_unavailable"),
    },
)
async def get_upload(resources: Res, principal: JobsRead, upload_id: UploadId) -> Response:
    """What was kept of an uploaded picture, with a URL that reads it for some minutes."""
    return json_answer(await service.get_upload(resources, principal, upload_id))


deletion_router = APIRouter(prefix="/v1", tags=["gallery"])


SessionName = Annotated[str, Path(max_length=64, description="As given in `session_id`.")]


def known_session(session_id: str) -> str:
    """The name; one that no session can have is the name of none: 404."""
    if "\0" in session_id:
        raise not_found("session")
    return session_id


@deletion_router.put(
    "/images/{image_id}/star",
    operation_id="images.star",
    summary="Star an image",
    response_class=Response,
    responses={
        200: {"model": Image},
        **responses("insufficient_scope", "not_found", "database_unavailable"),
    },
)
async def star(resources: Res, principal: ImagesWrite, image_id: ImageId) -> Response:
    """Marks it as one to keep; searches can ask for such, recommendations prefer their prompts."""
    return json_answer(await deletion.set_star(resources, principal, image_id, True))


@deletion_router.delete(
    "/images/{image_id}/star",
    operation_id="images.unstar",
    summary="Take an image's star away",
    response_class=Response,
    responses={
        200: {"model": Image},
        **responses("insufficient_scope", "not_found", "database_unavailable"),
    },
)
async def unstar(resources: Res, principal: ImagesWrite, image_id: ImageId) -> Response:
    """The image stays."""
    return json_answer(await deletion.set_star(resources, principal, image_id, False))


@deletion_router.delete(
    "/images/{image_id}",
    operation_id="images.delete",
    summary="Delete an image",
    response_class=Response,
    responses={
        200: {"model": Deleted},
        **responses("insufficient_scope", "not_found", "database_unavailable"),
    },
)
async def delete_image(resources: Res, principal: ImagesWrite, image_id: ImageId) -> Response:
    """Its row, its files, and its prompt's embedding if it was the prompt's last picture."""
    return json_answer(await deletion.delete_image(resources, principal, image_id))


@deletion_router.delete(
    "/uploads/{upload_id}",
    operation_id="uploads.delete",
    summary="Delete an upload",
    response_class=Response,
    responses={
        200: {"model": Deleted},
        **responses("insufficient_scope", "not_found", "job_not_finished", "database_unavailable"),
    },
)
async def delete_upload(resources: Res, principal: JobsWrite, upload_id: UploadId) -> Response:
    """Its row and its file; what was made from it stays.

    Jobs keep the pictures that came with them (a `data:` or https `init_image`) as uploads: their
    `init_image` is the id.
    """
    return json_answer(await deletion.delete_upload(resources, principal, upload_id))


@deletion_router.delete(
    "/jobs/{job_id}",
    operation_id="jobs.delete",
    summary="Delete a job",
    response_class=Response,
    responses={
        200: {"model": Deleted},
        **responses("insufficient_scope", "not_found", "job_not_finished", "database_unavailable"),
    },
)
async def delete_job(resources: Res, principal: JobsWrite, job_id: JobId) -> Response:
    """An ended job with its attempts, images and files. Cancel one that waits or runs first."""
    return json_answer(await deletion.delete_job(resources, principal, job_id))


@deletion_router.delete(
    "/sessions/{session_id}",
    operation_id="sessions.delete",
    summary="Delete a session",
    response_class=Response,
    responses={
        200: {"model": Deleted},
        **responses(
            "insufficient_scope",
            "not_found",
            "job_not_finished",
            "validation_failed",
            "database_unavailable",
        ),
    },
)
async def delete_session(resources: Res, principal: JobsWrite, session_id: SessionName) -> Response:
    """Everything in the session. While a job of it waits or runs nothing is deleted."""
    return json_answer(
        await deletion.delete_session(resources, principal, known_session(session_id))
    )
