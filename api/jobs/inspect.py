"""Read the receipt out of an image that a client sends, and make a job body of it."""

import hashlib
import tempfile
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field, ValidationError
from sqlalchemy.ext.asyncio import AsyncSession
from starlette.datastructures import UploadFile

from api.context import Resources
from api.core.errors import Problem
from api.core.fairness import on_thread
from api.core.principal import Principal
from api.images import service
from api.images.schemas import Provenance
from api.images.service import receipt_of
from api.images.uploads import read_provenance, refused
from api.jobs.options import (
    ControlEnd,
    ControlName,
    ControlScale,
    ControlStart,
    Hires,
    Preprocess,
    Threshold,
    options_of_receipt,
)
from api.jobs.schemas import Inspection
from api.jobs.submission import JobSubmission
from shared.core.ids import encode_id
from shared.images import queries
from shared.images.formats import ImageRefused, read_header


class _Named(BaseModel):
    name: str


class _Lora(BaseModel):
    name: str
    scale: float


class _Control(BaseModel):
    name: ControlName
    image_sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
    scale: ControlScale
    start: ControlStart
    end: ControlEnd
    preprocess: Preprocess
    low: Threshold | None
    high: Threshold | None

    def body(self, image: str | None) -> dict[str, Any]:
        """As a job's body has it, with that image."""
        return self.model_dump(exclude={"image_sha256"}, exclude_none=True) | {"image": image}


class _Reference(BaseModel):
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
    scale: float


class _ReceiptFields(BaseModel):
    """What is read of a receipt besides a job's settings. It is a claim, checked like input."""

    kind: Literal["txt2img", "img2img", "inpaint", "upscale"]
    hires: dict[str, Any] | None = None
    scheduler: _Named
    model: _Named
    init_image_sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")] | None = None
    mask_sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")] | None = None
    loras: list[_Lora] = []
    references: Annotated[list[_Reference], Field(max_length=2)] = []
    controls: Annotated[list[_Control], Field(max_length=2)] = []

    @property
    def listed(self) -> dict[str, list[str]]:
        """Field -> the hashes of the images that its entries name."""
        return {
            "controls": [control.image_sha256 for control in self.controls],
            "references": [reference.sha256 for reference in self.references],
        }


Listed = Mapping[str, Sequence[str | None]]
"""Field -> the id of each of its images; None: it is not here."""

_SETTINGS = (
    *("prompt", "negative_prompt", "seed", "width", "height", "steps", "guidance_scale"),
    *("true_cfg_scale", "strength", "resize_mode", "output_format"),
)
"""What a receipt and a job's body have under one name."""


async def inspect(resources: Resources, principal: Principal, file: UploadFile) -> Inspection:
    """The receipt inside an image, whether it is one of the tenant's, and a job to repeat it.

    Raises:
        Problem: 422 when it is no image or carries no receipt.
    """
    data = await file.read(resources.settings.max_upload_bytes + 1)
    try:
        receipt = await on_thread(receipt_of, data)
    except ImageRefused as refusal:
        raise refused(refusal) from None
    fields = _fields_of(receipt)
    if receipt is None or fields is None:
        raise Problem("receipt_missing")
    provenance = await _provenance(resources, data)
    notes: list[str] = []
    digest = hashlib.sha256(data).hexdigest()
    async with resources.tenant_transaction(principal) as session:
        find = queries.find_image_by_file(principal.tenant_id, digest).limit(1)
        stored = (await session.scalars(find)).one_or_none()
        start = await _initial_image(session, principal, fields.init_image_sha256)
        mask = await _initial_image(session, principal, fields.mask_sha256)
        listed = {
            name: [await _initial_image(session, principal, sha256) for sha256 in hashes]
            for name, hashes in fields.listed.items()
        }
    if fields.kind != "txt2img" and start is None:
        notes.append("The initial image is not on this server; pass it as init_image.")
    if fields.kind == "upscale":
        notes.append("It was upscaled: POST /v1/images/{id}/upscale for the image it comes from.")
    if fields.mask_sha256 is not None and mask is None:
        notes.append("The mask is not on this server; pass it as mask_image.")
    notes += [
        f"Image {number} of {name} is not on this server; pass it there."
        for name, images in listed.items()
        for number, image in enumerate(images, 1)
        if image is None
    ]
    if resources.catalog.get(fields.model.name) is None:
        notes.append("This server has no model of that name.")
    notes += [
        f"This server has no LoRA named {lora.name}."
        for lora in fields.loras
        if resources.catalog.get_lora(lora.name) is None
    ]
    notes += [
        f"This server has no ControlNet named {control.name}."
        for control in fields.controls
        if resources.catalog.get_controlnet(control.name) is None
    ]
    return Inspection(
        receipt=receipt,
        stored=stored is not None,
        image=service.serialize(resources, stored) if stored is not None else None,
        job=_job_body(receipt, fields, start, mask, listed),
        notes=notes,
        provenance=provenance,
    )


async def _provenance(resources: Resources, data: bytes) -> Provenance:
    with tempfile.TemporaryFile() as file:
        file.write(data)
        content_type = f"image/{read_header(data).format.lower()}"
        try:
            return await read_provenance(resources, file, content_type)
        except ImageRefused as refusal:
            raise refused(refusal) from None


def _fields_of(receipt: dict[str, Any] | None) -> _ReceiptFields | None:
    """None where it is no receipt of a job that could have been submitted."""
    try:
        if receipt is None:
            return None
        fields = _ReceiptFields.model_validate(receipt)
        start = "an image" if fields.kind != "txt2img" else None
        mask = "a mask" if fields.mask_sha256 is not None else None
        listed: Listed = {name: ["an image"] * len(own) for name, own in fields.listed.items()}
        JobSubmission.model_validate(_job_body(receipt, fields, start, mask, listed))
    except ValidationError:
        return None
    return fields


async def _initial_image(
    session: AsyncSession, principal: Principal, sha256: str | None
) -> str | None:
    """The id of an image of this tenant with these bytes."""
    if sha256 is None:
        return None
    upload = queries.find_upload_by_file(principal.tenant_id, sha256).limit(1)
    if (row := (await session.scalars(upload)).one_or_none()) is not None:
        return encode_id("upl", row.id)
    statement = queries.find_image_by_file(principal.tenant_id, sha256).limit(1)
    if (image := (await session.scalars(statement)).one_or_none()) is not None:
        return encode_id("img", image.id)
    return None


def _job_body(
    receipt: dict[str, Any],
    fields: _ReceiptFields,
    init_image: str | None,
    mask_image: str | None,
    listed: Listed,
) -> dict[str, Any]:
    body = {name: receipt.get(name) for name in _SETTINGS} | options_of_receipt(receipt)
    if (hires := body.get("hires")) is not None:
        body["hires"] = {name: hires.get(name) for name in Hires.model_fields}
    if fields.kind == "upscale":
        body["hires"] = init_image = None
    body |= {
        "scheduler": fields.scheduler.name,
        "model": fields.model.name,
        "init_image": init_image,
        "mask_image": mask_image if init_image is not None else None,
        "loras": [lora.model_dump() for lora in fields.loras] or None,
        "controls": [
            control.body(image)
            for image, control in zip(listed["controls"], fields.controls, strict=True)
            if image is not None
        ]
        or None,
        "references": [
            {"image": image, "scale": reference.scale}
            for image, reference in zip(listed["references"], fields.references, strict=True)
            if image is not None
        ]
        or None,
    }
    if init_image is None:
        del body["strength"]
        if not body["controls"]:
            del body["resize_mode"]
    elif body["resize_mode"] is None:
        body["resize_mode"] = "stretch"  # As before receipts said it.
    return {name: value for name, value in body.items() if value is not None}
