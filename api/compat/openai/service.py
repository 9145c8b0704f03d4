"""OpenAI's requests as jobs, and jobs as OpenAI's answers."""

import math
from datetime import timedelta
from typing import Any

from fastapi import Request

from api.compat.jobs import (
    find_earlier,
    find_images,
    meaning_of,
    read_file,
    submit_or_join,
    to_job,
)
from api.compat.openai.schemas import (
    GUIDANCE_NAMES,
    STEPS_NAMES,
    ImageDatum,
    ImageEdit,
    ImageGeneration,
    Images,
    OpenAIModel,
)
from api.context import Resources
from api.core.errors import Problem
from api.core.fairness import on_thread
from api.core.principal import Principal
from api.images.service import content_url
from api.jobs.idempotency import IdempotentRequest
from api.jobs.schemas import Job
from api.jobs.submission import JobSubmission
from shared.core.ids import encode_id
from shared.core.model_catalog import ModelCatalog, ModelSpec
from shared.images.models import Image

_RETRY_WINDOW = timedelta(minutes=15)
"""For this long a retry joins the job of its first try."""
_OPENAIS_NAMES = ("dall-e-", "gpt-image-", "chatgpt-image-")
_FIDELITY = {"high": 0.45, "low": 0.75}
_SHARES = {"low": 0.5, "high": 1.5, "xhigh": 2.0, "max": 3.0}
"""Of a model's default steps, for qualities that `models.toml` gives no steps for."""


def find_model(name: str | None, catalog: ModelCatalog) -> ModelSpec:
    """The model of that name or alias. OpenAI's own names, which many clients have built in, mean
    the first model, and so does an empty one: Open WebUI sends it for edits unless told otherwise.

    Raises:
        Problem: 404 `model_not_found`, in OpenAI's words.
    """
    spec = catalog.find(name) if name else catalog.default
    if spec is None and name is not None and name.startswith(_OPENAIS_NAMES):
        spec = catalog.default
    if spec is None:
        names = ", ".join(one.name for one in catalog.model[:20])
        message = f"There is no model {(name or '')[:64]!r}. The models are: {names}."
        raise Problem.invalid("/model", "model_not_found", message)
    return spec


def serialize_model(spec: ModelSpec) -> OpenAIModel:
    """A model in OpenAI's shape."""
    return OpenAIModel(id=spec.name, aliases=list(spec.aliases))


def steps_of(quality: str | None, spec: ModelSpec) -> int | None:
    """The steps of a quality; None for the model's default."""
    name = {"hd": "high", "standard": "medium"}.get(quality or "auto", quality or "auto")
    declared: int | None = getattr(spec.quality_steps, name, None)
    if declared is not None or name not in _SHARES:
        return declared
    return min(spec.max_steps, max(1, math.ceil(spec.default_steps * _SHARES[name])))


def to_submission(body: ImageGeneration, catalog: ModelCatalog) -> JobSubmission:
    """The job that a request asks for.

    Raises:
        Problem: it breaks a rule of jobs.
    """
    spec = find_model(body.model, catalog)
    labels = {"user": body.user, "safety_identifier": body.safety_identifier}
    extra = dict(body.extensions)
    metadata = {name: text for name, text in labels.items() if text} | extra.pop("metadata", {})
    fields: dict[str, Any] = {
        "prompt": body.prompt,
        "model": spec.name,
        "num_images": body.n,
        "output_format": body.output_format,
        "output_quality": _quality(body),
        "metadata": metadata or None,
        "previews": True if body.stream and body.partial_images else None,
        **_size(body),
    }
    if isinstance(body, ImageEdit):
        fields["init_image"], *others = body.sources
        if others and spec.ip_adapter is None:
            message = f"Give one image: {spec.name} does not support others."
            raise Problem.invalid("/image", "image_count", message)
        if others:
            given = extra.pop("references", [])
            if not isinstance(given, list):
                raise Problem.invalid("/references", "list_type", "references must be a list.")
            fields["references"] = [*({"image": one} for one in others), *given]
        fields["strength"] = _FIDELITY.get(body.input_fidelity or "")
        if body.mask_source is not None:
            fields |= {"mask_image": body.mask_source, "mask_from_alpha": True}
    fields |= extra
    fields["steps"] = _first(fields, STEPS_NAMES, steps_of(body.quality, spec))
    fields["guidance_scale"] = _first(fields, GUIDANCE_NAMES, None)
    return to_job(fields)


def _quality(body: ImageGeneration) -> int | None:
    if body.output_compression is None or not body.is_compressed:
        return None
    return max(1, body.output_compression)


def _size(body: ImageGeneration) -> dict[str, int]:
    if body.size in (None, "auto"):
        return {}
    width, _, height = str(body.size).partition("x")
    return {"width": int(width), "height": int(height)}


def _first(fields: dict[str, Any], names: tuple[str, ...], default: Any) -> Any:
    """The value that was given under one of the names, which are taken out."""
    given = [value for value in (fields.pop(name, None) for name in names) if value is not None]
    return given[0] if given else default


async def submit_job(
    resources: Resources,
    principal: Principal,
    request: Request,
    body: ImageGeneration,
    idempotency_key: str | None,
) -> tuple[Job, bool]:
    """Submit the job, or join the one that a retry is about; and whether it was joined.

    OpenAI's SDK sends no idempotency key, but says how often it has tried. So a retry joins the
    newest job of the same API key and body; a first try never joins one.

    Raises:
        Problem: the request breaks a rule of jobs, or its key was used for another.
    """
    joins = None
    meaning = await on_thread(meaning_of, f"openai {type(body).__name__}", body)
    if idempotency_key is None:
        joins = _RETRY_WINDOW if _is_retry(request) else timedelta(0)
        # No client can send a key with a control character.
        idempotency_key = f"\x01openai {principal.key_id} {meaning.hex()}"
    sent = IdempotentRequest(idempotency_key, meaning, joins)
    if (job := await find_earlier(resources, principal, sent)) is not None:
        return job, True
    submission = to_submission(body, resources.catalog)
    return await submit_or_join(resources, principal, submission, sent)


def _is_retry(request: Request) -> bool:
    count = request.headers.get("x-stainless-retry-count", "")
    return count[:9].isdecimal() and int(count[:9]) > 0


async def read_images(
    resources: Resources, principal: Principal, job: Job, body: ImageGeneration
) -> list[ImageDatum]:
    """The finished images, as they were asked for.

    Raises:
        Problem: 404 when one was deleted, 503 when storage is unavailable.
    """
    rows = await find_images(resources, principal, job)
    return [await _datum(resources, principal, row, job, body) for row in rows]


async def _datum(
    resources: Resources, principal: Principal, row: Image, job: Job, body: ImageGeneration
) -> ImageDatum:
    datum = ImageDatum(id=encode_id("img", row.id), seed=row.seed, job=job.id)
    if body.response_format == "url":
        datum.url = await content_url(resources, principal, row)
    else:
        datum.b64_json = await read_file(resources, row)
    return datum


def serialize(job: Job, body: ImageGeneration, data: list[ImageDatum]) -> Images:
    """OpenAI's answer about a job."""
    return Images(
        created=int(job.created_at.timestamp()),
        data=data,
        job=job.id,
        model=job.model,
        output_format=job.output_format,
        quality=body.quality or "auto",
        size=f"{job.width}x{job.height}",
    )
