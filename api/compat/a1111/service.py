"""What the web UI's API does apart from making images: options, lists, progress, an end."""

import base64
import binascii
import contextlib
import io
import re
from collections.abc import Sequence
from datetime import UTC, datetime

from api.admin.service import list_loras
from api.compat.a1111.requests import MARK, find_model, model_of
from api.compat.a1111.samplers import KARRAS, SAMPLERS, UNIFORM
from api.compat.a1111.schemas import (
    LoraItem,
    Options,
    OptionsChange,
    PngInfo,
    ProgressAnswer,
    ProgressState,
    SamplerItem,
    SdModel,
    Txt2Img,
)
from api.compat.jobs import encode
from api.context import Resources
from api.core.errors import Problem
from api.core.fairness import on_thread
from api.core.principal import Principal
from api.images.service import receipt_of, texts_of
from api.images.uploads import refused
from api.jobs import service as jobs
from api.jobs.init_images import clean_data_url
from api.jobs.redis_events import read_preview
from api.jobs.schemas import Job
from api.jobs.submission import JobSubmission
from shared.core import tenants
from shared.core.ids import encode_id
from shared.core.model_catalog import ModelSpec
from shared.images.formats import ImageRefused
from shared.images.receipts import parameters_text
from shared.jobs import models
from shared.jobs.queries import lookups
from shared.jobs.state import JobState

_MOST_STOPPED = 100
"""Jobs that one interrupt cancels, the newest ones."""
_PARAMETER = re.compile(r'(\w[\w ]{0,63}):\s*("(?:\\.|[^"\\])*"|[^,]*)(?:,|$)')
_MOST_SETTINGS = 4096
"""Characters of a line of settings that is read."""


async def spec_of(resources: Resources, principal: Principal, body: Txt2Img) -> ModelSpec:
    """The model of a request: the one that it names, the key's, or the first.

    Raises:
        Problem: 404 for one that there is not.
    """
    name = model_of(body)
    return find_model(name, resources.catalog) if name else await _chosen(resources, principal)


async def _chosen(resources: Resources, principal: Principal) -> ModelSpec:
    async with resources.tenant_transaction(principal) as session:
        key = tenants.get_key(principal.tenant_id, principal.key_id)
        row = (await session.scalars(key)).one_or_none()
    name = row.a1111_model if row is not None else None
    # One that is no longer declared is as if none had been chosen.
    return (resources.catalog.find(name) if name else None) or resources.catalog.default


async def with_inverted_mask(resources: Resources, submission: JobSubmission) -> JobSubmission:
    """The job whose mask is black where it was white.

    Raises:
        Problem: 422 for a mask that is not in the request, or is none; 503 when no decoder is free.
    """
    sent = submission.mask_image or ""
    if sent[:5].lower() != "data:":
        message = "Send a mask that is to be inverted as base64."
        raise Problem.invalid("/inpainting_mask_invert", "unsupported_parameter", message)
    clean = await clean_data_url(resources, sent, "mask_image")
    inverted = await on_thread(_inverted, clean.data)
    return submission.model_copy(update={"mask_image": inverted})


def _inverted(mask: bytes) -> str:
    from PIL import Image, ImageChops

    from shared.images.fitting import mask_of

    with Image.open(io.BytesIO(mask), formats=("PNG",)) as image:
        black = ImageChops.invert(mask_of(image, from_alpha=False))
    file = io.BytesIO()
    black.save(file, "PNG")
    return f"data:image/png;base64,{encode(file.getvalue())}"


async def read_options(resources: Resources, principal: Principal) -> Options:
    """The options as they are for this key."""
    return Options(sd_model_checkpoint=(await _chosen(resources, principal)).name)


async def change_options(resources: Resources, principal: Principal, change: OptionsChange) -> None:
    """Choose the key's model. Clients also send all options back as they got them.

    Raises:
        Problem: 404 for a model that there is not; 422 for an option that cannot be changed.
    """
    fixed = Options(sd_model_checkpoint="").model_dump()
    for name, value in (change.model_extra or {}).items():
        if name not in fixed or value != fixed[name]:
            message = f"The option {name[:64]!r} cannot be set."
            raise Problem.invalid(f"/{name[:64]}", "unsupported_option", message)
    if change.sd_model_checkpoint is None:
        return
    spec = find_model(change.sd_model_checkpoint, resources.catalog)
    async with resources.tenant_transaction(principal) as session:
        choose = tenants.choose_a1111_model(principal.tenant_id, principal.key_id, spec.name)
        await session.execute(choose)


def serialize_model(spec: ModelSpec) -> SdModel:
    """A model in the web UI's shape."""
    return SdModel(title=spec.name, model_name=spec.name, filename=spec.name)


def samplers() -> list[SamplerItem]:
    """All there are for any model."""
    return [
        SamplerItem(
            name=one.name,
            aliases=list(one.aliases),
            options={"scheduler": KARRAS if one.prefers_karras else UNIFORM},
        )
        for one in SAMPLERS
    ]


async def loras(resources: Resources, principal: Principal) -> list[LoraItem]:
    """The catalogue's and the tenant's own."""
    return [
        LoraItem(
            name=one.name,
            alias=one.name,
            path=one.name,
            metadata={"family": one.family, "trigger_words": list(one.trigger_words)},
        )
        for one in (await list_loras(resources, principal)).data
    ]


async def _unfinished(resources: Resources, principal: Principal) -> Sequence[models.Job]:
    """This key's unfinished jobs from this API, newest first."""
    statement = lookups.list_unfinished_of_key(
        principal.tenant_id, principal.key_id, MARK, _MOST_STOPPED
    )
    async with resources.tenant_transaction(principal) as session:
        return (await session.scalars(statement)).all()


async def progress(
    resources: Resources, principal: Principal, *, with_image: bool
) -> ProgressAnswer:
    """How far the key's newest running job is."""
    unfinished = await _unfinished(resources, principal)
    running = next((row for row in unfinished if row.state == JobState.RUNNING), None)
    job: Job | None = None
    preview = None
    if running is not None:
        # The preview first: its step was told before it, so that what is shown has always begun.
        if with_image:
            preview = await read_preview(resources, running.id)
        job = await jobs.get(resources, principal, encode_id("job", running.id))
    made = job.progress if job is not None else None
    left = (job.eta.p50 - datetime.now(UTC)).total_seconds() if job and job.eta else 0.0
    return ProgressAnswer(
        progress=made.fraction if made is not None else 0.0,
        eta_relative=round(max(0.0, left), 3),
        state=ProgressState(
            interrupted=running is not None and running.cancel_requested,
            job=job.id if job is not None else "",
            job_count=len(unfinished),
            job_timestamp=f"{job.created_at:%Y%m%d%H%M%S}" if job is not None else "0",
            sampling_step=made.step if made is not None else 0,
            sampling_steps=made.steps if made is not None else 0,
        ),
        current_image=preview,
    )


async def interrupt(resources: Resources, principal: Principal, *, only_newest: bool) -> None:
    """Cancel the key's unfinished jobs from this API, or the newest one that runs."""
    rows = await _unfinished(resources, principal)
    if only_newest:
        rows = [row for row in rows if row.state == JobState.RUNNING][:1]
    for row in rows:
        # It may have ended, or been deleted, meanwhile.
        with contextlib.suppress(Problem):
            await jobs.cancel(resources, principal, encode_id("job", row.id))


async def png_info(resources: Resources, text: str) -> PngInfo:
    """What an image says of itself; its pixels are not looked at.

    Raises:
        Problem: 422 when it is no image.
    """
    encoded = text.strip().partition("base64,")[2] or text.strip()
    if len(encoded) > resources.settings.max_upload_bytes * 4 // 3 + 4:
        raise Problem.invalid("/image", "image_too_large", "The image is too large.")
    try:
        data = base64.b64decode(encoded, validate=True)
        return await on_thread(_read_info, data)
    except binascii.Error:
        raise Problem.invalid("/image", "malformed_base64", "The image is not base64.") from None
    except ImageRefused as refusal:
        raise refused(refusal) from None


def _read_info(data: bytes) -> PngInfo:
    receipt, items = receipt_of(data), texts_of(data)
    info = items.pop("parameters", "")
    if receipt is not None and not info:  # in WebP and JPEG
        with contextlib.suppress(KeyError, TypeError):
            info = parameters_text(receipt)
    return PngInfo(info=info, items=items, parameters=read_parameters(info))


def read_parameters(info: str) -> dict[str, str]:
    """The settings in a text as image tools write it; empty for another text."""
    *prompts, facts = info.strip().split("\n")
    if len(facts) > _MOST_SETTINGS:
        return {}
    found = {name.strip(): value.strip() for name, value in _PARAMETER.findall(facts)}
    if len(found) < 3:
        return {}
    prompt, _, negative = "\n".join(prompts).partition("Negative prompt: ")
    return {"Prompt": prompt.strip(), "Negative prompt": negative.strip(), **found}
