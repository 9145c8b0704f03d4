"""Read the receipt out of a picture that a client sends, and make a job body of it."""

import hashlib
import io
from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field, ValidationError
from sqlalchemy.ext.asyncio import AsyncSession
from starlette.datastructures import UploadFile

from api.context import Resources
from api.core.errors import Problem
from api.core.fairness import on_thread
from api.core.principal import Principal
from api.images import service
from api.images.schemas import Inspection
from api.images.service import refused
from api.jobs.schemas import JobSubmission
from shared.core.ids import to_wire
from shared.images import (
    ImageDimensions,
    ImageNotRecognized,
    ImageRefused,
    ImageUndecodable,
    queries,
)
from shared.images.header import read_header

_MAX_SIDE = 4096
_DAMAGED = (OSError, ValueError, SyntaxError, MemoryError)
"""What Pillow raises for a damaged header; the pixels are never decoded here."""


class _Named(BaseModel):
    name: str


class _ReceiptFields(BaseModel):
    """What is read of a receipt beside a job's settings. It is a claim, checked like input."""

    kind: Literal["txt2img", "img2img"]
    scheduler: _Named
    model: _Named
    init_image_sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")] | None = None


_SETTINGS = (
    *("prompt", "negative_prompt", "seed", "width", "height", "steps", "guidance_scale"),
    *("strength", "resize_mode", "output_format"),
)
"""What a receipt and a job's body have under one name."""


async def inspect(resources: Resources, principal: Principal, file: UploadFile) -> Inspection:
    """The receipt inside a picture, whether it is one of the tenant's, and a job to repeat it.

    Raises:
        Problem: 422 when it is no picture or carries no receipt.
    """
    data = await file.read(resources.settings.max_upload_bytes + 1)
    try:
        receipt = await on_thread(receipt_of, data)
    except ImageRefused as refusal:
        raise refused(refusal) from None
    fields = _fields_of(receipt)
    if receipt is None or fields is None:
        raise Problem("receipt_missing")
    notes: list[str] = []
    digest = hashlib.sha256(data).hexdigest()
    async with resources.tenant_transaction(principal) as session:
        find = queries.find_image_by_file(principal.tenant_id, digest).limit(1)
        stored = (await session.scalars(find)).one_or_none()
        start = await _initial_image(session, principal, fields.init_image_sha256)
    if fields.kind == "img2img" and start is None:
        notes.append("The initial image is not here; give its picture as init_image.")
    if resources.catalog.get(fields.model.name) is None:
        notes.append("This server has no model of that name.")
    return Inspection(
        receipt=receipt,
        stored=stored is not None,
        image=service.present(resources, stored) if stored is not None else None,
        job=_job_body(receipt, fields, start),
        notes=notes,
    )


def receipt_of(data: bytes) -> dict[str, Any] | None:
    """The receipt in a file's metadata; reads the header and text chunks only.

    Raises:
        ImageRefused: the file is not a PNG, WebP or JPEG of a size that we make.
    """
    from PIL import Image, UnidentifiedImageError

    from shared.images.receipts import read_receipt

    header = read_header(data)
    if header.size is not None and max(header.size) > _MAX_SIDE:
        raise ImageDimensions(f"A side has more than {_MAX_SIDE} pixels.")
    try:
        with Image.open(io.BytesIO(data), formats=(header.format,)) as picture:
            return read_receipt(picture)
    except Image.DecompressionBombError:
        raise ImageDimensions("It has more pixels than are accepted.") from None
    except UnidentifiedImageError:
        raise ImageNotRecognized("The file cannot be read as an image.") from None
    except _DAMAGED:
        raise ImageUndecodable("Its header is damaged.") from None


def _fields_of(receipt: dict[str, Any] | None) -> _ReceiptFields | None:
    """None where it is no receipt of a job that could have been submitted."""
    try:
        if receipt is None:
            return None
        fields = _ReceiptFields.model_validate(receipt)
        start = "an image" if fields.kind == "img2img" else None
        JobSubmission.model_validate(_job_body(receipt, fields, start))
    except ValidationError:
        return None
    return fields


async def _initial_image(
    session: AsyncSession, principal: Principal, sha256: str | None
) -> str | None:
    """The id of a picture of this tenant with these bytes."""
    if sha256 is None:
        return None
    upload = queries.find_upload_by_file(principal.tenant_id, sha256).limit(1)
    if (row := (await session.scalars(upload)).one_or_none()) is not None:
        return to_wire("upl", row.id)
    image = queries.find_image_by_file(principal.tenant_id, sha256).limit(1)
    if (picture := (await session.scalars(image)).one_or_none()) is not None:
        return to_wire("img", picture.id)
    return None


def _job_body(
    receipt: dict[str, Any], fields: _ReceiptFields, init_image: str | None
) -> dict[str, Any]:
    body = {name: receipt.get(name) for name in _SETTINGS} | {
        "scheduler": fields.scheduler.name,
        "model": fields.model.name,
        "init_image": init_image,
    }
    if init_image is None:
        del body["strength"]
        del body["resize_mode"]
    elif body["resize_mode"] is None:
        body["resize_mode"] = "stretch"  # As before receipts said it.
    return {name: value for name, value in body.items() if value is not None}
