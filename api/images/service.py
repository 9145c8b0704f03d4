"""The rules of images: find them, show them, read their files."""

from typing import Any

from api.deps import Resources, parse_id
from api.images.schemas import Image, ImageLinks
from api.jobs.present import image_fields
from api.principal import Principal
from api.problems import Problem, not_found
from shared.errors import StorageUnavailable
from shared.gallery import models as rows
from shared.gallery import statements as gallery
from shared.ids import to_wire
from shared.storage import EXTENSIONS, ObjectMissing, StoredObject


async def find(resources: Resources, principal: Principal, image_id: str) -> rows.Image:
    """A tenant's image.

    Raises:
        Problem: 404.
    """
    row_id = parse_id("img", image_id, "image")
    async with resources.tenant_transaction(principal) as session:
        statement = gallery.get_image(principal.tenant_id, row_id)
        row = (await session.scalars(statement)).one_or_none()
    if row is None:
        raise not_found("image")
    return row


def present(resources: Resources, row: rows.Image) -> Image:
    """The wire form of an image."""
    return Image(**fields(resources, row))


def fields(resources: Resources, row: rows.Image) -> dict[str, Any]:
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


def file_name(row: rows.Image) -> str:
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
