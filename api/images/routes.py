"""HTTP of images, uploads and sessions: look, read a file or a receipt, star, delete."""

from typing import Annotated, Any

from fastapi import APIRouter, Depends, Path, Query, Request, Response, Security
from fastapi.responses import JSONResponse, RedirectResponse
from fastapi.security import APIKeyQuery

from api.context import Res, parse_id
from api.core.auth import (
    ImagesRead,
    ImagesWrite,
    JobsRead,
    JobsWrite,
    authenticate,
    bearer,
    require,
)
from api.core.bodies import File
from api.core.errors import not_found, problems, problems_of
from api.core.principal import Principal
from api.core.serialization import Page, PageRequest, Paging, paging, refuse_unknown_parameters
from api.images import deletion, service
from api.images import sessions as session_service
from api.images import uploads as upload_service
from api.images.files import FileConditions, file_answer
from api.images.schemas import Deleted, Image, Provenance, Session, Upload

router = APIRouter(prefix="/v1/images", tags=["images"])
files = APIRouter(prefix="/v1/images", tags=["images"])
"""Routes that a ticket opens, too."""
uploads = APIRouter(prefix="/v1/uploads", tags=["uploads"])
sessions = APIRouter(prefix="/v1/sessions", tags=["sessions"])
gallery = APIRouter(prefix="/v1")
"""Stars and deletion, of all three."""
ImageId = Annotated[str, Path(description="`img_…`", examples=["img_01jd4zk3v8e0x9m5q7r2t6w8ya"])]
Proxy = Annotated[bool, Query(description="true: through the API instead of a redirect.")]
Download = Annotated[bool, Query(description="true: as an attachment with a file name.")]

_FOR_EVER = "private, max-age=31536000, immutable"
"""An image never changes."""

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
}
_FILE_PROBLEMS = ("object_missing", "range_not_satisfiable", "storage_unavailable")


_ticket = APIKeyQuery(
    name="ticket",
    auto_error=False,
    scheme_name="ImageTicket",
    description="From answers of the OpenAI API: a link that needs no key for an hour.",
)


@problems(*problems_of(authenticate), "insufficient_scope")
async def _admit_reader(
    *,
    request: Request,
    resources: Res,
    image_id: ImageId,
    ticket: Annotated[str | None, Security(_ticket)],
    _: Annotated[object, Security(bearer)],
) -> Principal:
    """By ticket or by key. The ticket counts: some clients send other servers' keys along."""
    if ticket is not None:
        row_id = parse_id("img", image_id, "image")
        return (await service.TICKETS.redeem(resources, request, ticket, row_id))[0]
    principal = await require("images:read")(await authenticate(request, resources))
    await refuse_unknown_parameters(request, principal)
    return principal


@router.get("/{image_id}", operation_id="images.get", summary="Get an image")
async def get(resources: Res, principal: ImagesRead, image_id: ImageId) -> Image:
    """An image's facts and URLs."""
    row = await service.find(resources, principal, image_id)
    return service.serialize(resources, row)


@files.get(
    "/{image_id}/content",
    operation_id="images.content",
    summary="Read an image's file",
    response_class=Response,
    responses=_FILE_RESPONSES,
)
@problems(*_FILE_PROBLEMS)
async def content(
    *,
    resources: Res,
    principal: Annotated[Principal, Depends(_admit_reader)],
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
@problems(*_FILE_PROBLEMS)
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
    responses={200: {"description": "The receipt, as it is in the image's `darkroom` chunk."}},
)
async def receipt(resources: Res, principal: ImagesRead, image_id: ImageId) -> Response:
    """How the image was made: enough to make it again."""
    row = await service.find(resources, principal, image_id)
    return JSONResponse(row.receipt)


@router.get(
    "/{image_id}/provenance",
    operation_id="images.provenance",
    summary="Verify an image's provenance",
)
@problems("object_missing", "storage_unavailable", "decoder_unavailable", "image_refused")
async def provenance(resources: Res, principal: ImagesRead, image_id: ImageId) -> Provenance:
    """Reads the stored file: its digital source type, and its C2PA manifest, which is verified."""
    return await upload_service.provenance_of(resources, principal, image_id)


# --- Uploads: images to start from ---------------------------------------------------------------

UploadId = Annotated[str, Path(description="`upl_…`")]


@uploads.post("", operation_id="uploads.create", summary="Upload an initial image", status_code=201)
@problems(
    "image_refused", upload_service.UPLOAD_REFUSAL, "storage_unavailable", "decoder_unavailable"
)
async def create_upload(
    resources: Res, principal: JobsWrite, file: File, response: Response
) -> Upload:
    """PNG, JPEG or WebP up to 10 MB, one frame, 64 to 4096 pixels a side.

    The image is decoded, turned upright, reduced to RGB (and its alpha) and re-encoded; nothing
    else of the file is kept. Give its id as `init_image`, `mask_image` or in `references` of a job.
    """
    upload = await upload_service.accept_upload(resources, principal, file)
    response.headers["Location"] = f"/v1/uploads/{upload.id}"
    return upload


@uploads.get("", operation_id="uploads.list", summary="List uploads")
async def list_uploads(resources: Res, principal: JobsRead, paging: Paging) -> Page[Upload]:
    """Your tenant's initial images, newest first, those that came with a job too."""
    return await upload_service.list_page(resources, principal, paging)


@uploads.get("/{upload_id}", operation_id="uploads.get", summary="Get an upload")
async def get_upload(resources: Res, principal: JobsRead, upload_id: UploadId) -> Upload:
    """An uploaded image as stored, with a URL that is valid for some minutes."""
    return await upload_service.get_upload(resources, principal, upload_id)


# --- Sessions ----------------------------------------------------------------------------------

LongPaging = Annotated[PageRequest, Depends(paging(longest=2000))]
"""With cursors that hold more than an id."""
SessionName = Annotated[str, Path(max_length=64, description="As given in `session_id`.")]


def known_session(session_id: str) -> str:
    """The name; one that no session can have is the name of none: 404."""
    if "\0" in session_id:
        raise not_found("session")
    return session_id


@sessions.get("", operation_id="sessions.list", summary="List sessions")
async def list_sessions(resources: Res, principal: ImagesRead, paging: LongPaging) -> Page[Session]:
    """Your tenant's sessions, the last used first: by their newest job."""
    return await session_service.list_page(resources, principal, paging)


@sessions.get("/{session_id}", operation_id="sessions.get", summary="Get a session")
async def get_session(resources: Res, principal: ImagesRead, session_id: SessionName) -> Session:
    """How many jobs and images it has."""
    return await session_service.get(resources, principal, known_session(session_id))


# --- The gallery ---------------------------------------------------------------------------------


@gallery.put(
    "/images/{image_id}/star", operation_id="images.star", tags=["images"], summary="Star an image"
)
async def star(resources: Res, principal: ImagesWrite, image_id: ImageId) -> Image:
    """Marks it as one to keep; searches can ask for such, recommendations prefer their prompts."""
    return await deletion.set_star(resources, principal, image_id, True)


@gallery.delete(
    "/images/{image_id}/star",
    operation_id="images.unstar",
    tags=["images"],
    summary="Unstar an image",
)
async def unstar(resources: Res, principal: ImagesWrite, image_id: ImageId) -> Image:
    """The image stays."""
    return await deletion.set_star(resources, principal, image_id, False)


@gallery.delete(
    "/images/{image_id}", operation_id="images.delete", tags=["images"], summary="Delete an image"
)
async def delete_image(resources: Res, principal: ImagesWrite, image_id: ImageId) -> Deleted:
    """Hidden at once. After a minute, in which `restore` brings it back, its files go too, and its
    prompt with the embedding if it was the prompt's last image."""
    return await deletion.delete_image(resources, principal, image_id)


@gallery.post(
    "/images/{image_id}/restore",
    operation_id="images.restore",
    tags=["images"],
    summary="Restore an image",
)
async def restore_image(resources: Res, principal: ImagesWrite, image_id: ImageId) -> Image:
    """Undoes a deletion of the last minute. An image that is there is answered as it is."""
    return await deletion.restore_image(resources, principal, image_id)


@gallery.delete(
    "/uploads/{upload_id}",
    operation_id="uploads.delete",
    tags=["uploads"],
    summary="Delete an upload",
)
@problems("job_not_finished")
async def delete_upload(resources: Res, principal: JobsWrite, upload_id: UploadId) -> Deleted:
    """Its row and its file; what was made from it stays.

    Jobs keep the images that came with them (a `data:` or https `init_image`) as uploads: their
    `init_image` is the id.
    """
    return await deletion.delete_upload(resources, principal, upload_id)


@gallery.delete(
    "/sessions/{session_id}",
    operation_id="sessions.delete",
    tags=["sessions"],
    summary="Delete a session",
)
@problems("job_not_finished")
async def delete_session(resources: Res, principal: JobsWrite, session_id: SessionName) -> Deleted:
    """Everything in the session. While a job of it waits or runs nothing is deleted."""
    return await deletion.delete_session(resources, principal, known_session(session_id))
