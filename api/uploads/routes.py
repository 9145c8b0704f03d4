"""HTTP of uploads."""

from typing import Annotated

from fastapi import APIRouter, Depends, Path, Query, Response
from starlette.datastructures import UploadFile

from api.auth import JobsRead, JobsWrite
from api.bodies import FILE_SCHEMA, read_file
from api.deps import Res
from api.problems import responses
from api.uploads import service
from api.uploads.schemas import Upload
from api.usage.admission import UPLOAD_REFUSAL
from api.wire import Page, PageLimit, json_answer

router = APIRouter(prefix="/v1/uploads", tags=["uploads"])

UploadId = Annotated[str, Path(description="`upl_…`")]


@router.post(
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
async def create(
    resources: Res, principal: JobsWrite, file: Annotated[UploadFile, Depends(read_file)]
) -> Response:
    """PNG, JPEG or WebP up to 10 MB, one frame, 64 to 4096 pixels a side.

    The picture is decoded, turned upright, reduced to RGB and encoded anew; nothing else of the
    file is kept. Give its id as `init_image` of a job.
    """
    upload = await service.accept(resources, principal, file)
    return json_answer(upload, 201, {"Location": f"/v1/uploads/{upload.id}"})


@router.get(
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


@router.get(
    "/{upload_id}",
    operation_id="uploads.get",
    summary="Get an upload",
    response_class=Response,
    responses={
        200: {"model": Upload},
        **responses("insufficient_scope", "not_found", "database_unavailable"),
    },
)
async def get(resources: Res, principal: JobsRead, upload_id: UploadId) -> Response:
    """What was kept of an uploaded picture, with a URL that reads it for some minutes."""
    return json_answer(await service.get(resources, principal, upload_id))
