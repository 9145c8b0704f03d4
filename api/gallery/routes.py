"""HTTP of keeping pictures and throwing them away."""

from typing import Annotated

from fastapi import APIRouter, Path, Response

from api.auth import ImagesWrite, JobsWrite
from api.deps import Res
from api.gallery import service
from api.gallery.schemas import Deleted
from api.images.routes import ImageId
from api.images.schemas import Image
from api.jobs.routes import JobId
from api.problems import not_found, responses
from api.uploads.routes import UploadId
from api.wire import json_answer

router = APIRouter(prefix="/v1", tags=["gallery"])

SessionName = Annotated[str, Path(max_length=64, description="As given in `session_id`.")]


def known_session(session_id: str) -> str:
    """The name; one that no session can have is the name of none: 404."""
    if "\0" in session_id:
        raise not_found("session")
    return session_id


@router.put(
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
    return json_answer(await service.set_star(resources, principal, image_id, True))


@router.delete(
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
    return json_answer(await service.set_star(resources, principal, image_id, False))


@router.delete(
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
    return json_answer(await service.delete_image(resources, principal, image_id))


@router.delete(
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
    return json_answer(await service.delete_upload(resources, principal, upload_id))


@router.delete(
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
    return json_answer(await service.delete_job(resources, principal, job_id))


@router.delete(
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
        await service.delete_session(resources, principal, known_session(session_id))
    )
