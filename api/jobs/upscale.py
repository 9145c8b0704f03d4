"""Make a stored image larger: its pixels resampled, or a second pass from its latents."""

from collections.abc import Mapping
from typing import Any

from pydantic import Field

from api.context import Resources
from api.core.bodies import RequestModel
from api.core.errors import FieldError, Problem
from api.core.principal import Principal
from api.images import service as image_service
from api.jobs.estimates import Estimates, serialize_eta, work_of_image
from api.jobs.idempotency import Answer, IdempotentRequest
from api.jobs.loras import own_loras
from api.jobs.model_rules import broken_hires_rules
from api.jobs.options import (
    DEFAULT_HIRES_STRENGTH,
    IMAGE_LISTS,
    HiresScale,
    HiresSteps,
    HiresStrength,
    Upscaler,
    options_of_receipt,
)
from api.jobs.planning import with_controlnets
from api.jobs.prompt_filters import check_prompt
from api.jobs.reproduce import columns_of_receipt
from api.jobs.sizes import upscaled_size, with_sizes_of
from api.jobs.submission import MAX_SIDE
from api.jobs.submit import Submission, accept, fingerprint, model_warnings, publish
from shared.core.families import FAMILIES, possible_steps
from shared.core.ids import encode_id
from shared.images import models as image_models
from shared.jobs.queries import lookups

_KEPT = ("prompt_syntax", "long_prompt", "output_quality")
"""Of the image's options: how its prompt is read and its file written. What it looked at, `latent`
looks at again; the others have done their part."""


class UpscaleSubmission(RequestModel):
    """Scale and method."""

    scale: HiresScale = Field(
        default=2.0, description="Above 1 to 4; sides are rounded to the model's multiple."
    )
    method: Upscaler = Field(
        default="lanczos",
        description="lanczos: resample the pixels, without the model. latent: encode the image, "
        "interpolate its latents and denoise them with its own prompt, seed and settings.",
    )
    strength: HiresStrength | None = Field(
        default=None, description="latent only: how far to leave the image. Default 0.7."
    )
    steps: HiresSteps | None = Field(
        default=None, description="latent only: of the whole schedule. Default: the image's own."
    )


UPSCALE_EXAMPLES: dict[str, Any] = {
    "twice as large": {"scale": 2},
    "with new details": {"scale": 1.5, "method": "latent", "strength": 0.5},
}


async def upscale(
    resources: Resources,
    principal: Principal,
    image_id: str,
    submission: UpscaleSubmission,
    idempotency_key: str | None,
) -> Answer:
    """Queue a job that makes the image larger, or replay the original answer.

    Raises:
        Problem: 404 for an unknown image; 422 for what its model cannot do, or where that is not in
            the catalogue any more; 403, 429 and 503 as for other submissions.
    """
    operation = f"POST /v1/images/{image_id}/upscale"
    request = IdempotentRequest(idempotency_key, fingerprint(operation, submission))
    # The image or its model may have gone since.
    if (replay := await request.find_earlier(resources, principal)) is not None:
        return replay
    original = await image_service.find(resources, principal, image_id)
    estimates = resources.get(Estimates)
    families, prices = await resources.workers.families(), await estimates.prices()
    own = await own_loras(resources, principal)
    columns = columns_of_receipt(
        resources, principal, original, own, needs_loras=submission.method == "latent"
    )
    columns |= _choices(resources, original, columns, submission, families)
    if submission.method == "latent":
        columns |= await _looking_at(resources, principal, original, columns, families)
    marks = await check_prompt(
        resources, principal, columns["model"], columns["prompt"], columns["negative_prompt"]
    )
    columns["warnings"] = await model_warnings(resources, columns["model"]) + marks
    work = work_of_image(columns)
    denoises = columns["cost"] > 0
    estimate = await estimates.of_new(work) if denoises else None
    columns["estimate"] = estimate.as_json() if estimate is not None else None
    columns["estimated_gpu_seconds"] = prices.gpu_seconds(work) if denoises else 0.0
    family, eta = families.get(columns["model"]), serialize_eta(estimate)
    new = Submission(resources, principal, request, columns, [], eta, family)
    row, _, answer = await accept(new)
    if row is not None:
        if denoises:
            estimates.accepted(work)
        await publish(resources, row)
    return answer


async def _looking_at(
    resources: Resources,
    principal: Principal,
    original: image_models.Image,
    settings: Mapping[str, Any],
    families: Mapping[str, str],
) -> dict[str, Any]:
    """Columns with the images that the job of the image named, which the receipt does not: as many
    as the model looks at alongside an initial image."""
    facts = FAMILIES.get(families.get(settings["model"]) or "")
    names = {name for name in IMAGE_LISTS if original.receipt.get(name)}
    if facts is not None and not facts.control_images:
        names -= {"controls"}
    if not names:
        return {}
    async with resources.tenant_transaction(principal) as session:
        found = await session.scalars(lookups.get_job(principal.tenant_id, original.job_id))
        named = found.one().options
    options = settings["options"] | {name: named[name] for name in names}
    return {
        "options": options,
        "cost": with_controlnets(settings["cost"], options),
        "resize_mode": original.receipt.get("resize_mode"),  # fits what ControlNets see
    }


def _choices(
    resources: Resources,
    original: image_models.Image,
    settings: Mapping[str, Any],
    submission: UpscaleSubmission,
    families: Mapping[str, str],
) -> dict[str, Any]:
    """The columns in which the job differs from the one that made the image."""
    spec = resources.catalog.get(settings["model"])
    assert spec is not None  # noqa: S101 - `columns_of_receipt` has found it
    family = families.get(settings["model"])
    spec = with_sizes_of(family, spec)
    denoises = submission.method == "latent"
    size = upscaled_size(original.width, original.height, submission.scale, spec)
    told = options_of_receipt(original.receipt)
    hires: dict[str, Any] = {
        "scale": submission.scale,
        "strength": (submission.strength or DEFAULT_HIRES_STRENGTH) if denoises else None,
        "steps": (submission.steps or settings["steps"]) if denoises else 0,
        "upscaler": submission.method,
        **size,
    }
    run = 0
    if denoises:
        run = max(possible_steps(hires["steps"], hires["strength"], settings["scheduler"], family))
        errors = broken_hires_rules(hires, run, spec, family)
    else:
        given = {"strength": submission.strength, "steps": submission.steps}
        errors = [
            FieldError(
                pointer=f"/{name}",
                code=f"{name}_without_latent",
                message=f"{name} needs the method latent.",
            )
            for name, value in given.items()
            if value is not None
        ]
        too_large = max(size.values()) > MAX_SIDE
        if too_large:
            message = f"A side would have more than {MAX_SIDE} pixels."
            errors.append(FieldError(pointer="/scale", code="size_over_limit", message=message))
    if errors:
        errors = [error.model_copy(update={"pointer": _here(error.pointer)}) for error in errors]
        raise Problem("validation_failed", errors[0].message, errors=errors)
    return {
        "kind": "upscale",
        "width": original.width,
        "height": original.height,
        "strength": None,
        "resize_mode": None,
        "init_image": {
            "ref": encode_id("img", original.id),
            "s3_key": original.s3_key,
            "sha256": original.sha256,
        },
        "options": {name: told[name] for name in _KEPT if name in told} | {"hires": hires},
        "batch_size": None,
        "job_metadata": {},
        "cost": size["width"] * size["height"] * run,
    }


def _here(pointer: str | None) -> str:
    """Where a rule about `hires` finds its field in this request."""
    names = {"/hires": "/method", "/hires/upscaler": "/method"}
    return names.get(pointer or "", (pointer or "").replace("/hires", ""))
