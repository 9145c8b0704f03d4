"""Make an image again from its receipt, and say how alike the two are and why."""

import io
from dataclasses import dataclass
from typing import Any, Literal

from fastapi import Request
from sqlalchemy.ext.asyncio import AsyncSession

from api.context import Resources, parse_id
from api.core.errors import Problem
from api.core.fairness import on_thread
from api.core.principal import Principal
from api.images import service as image_service
from api.jobs import service as jobs
from api.jobs.admission import Demand, admitted
from api.jobs.estimates import Estimates, work_of_image
from api.jobs.loras import OwnLoras, own_loras
from api.jobs.options import IMAGE_LISTS, options_of_receipt
from api.jobs.prefer_wait import newest_event, wait_for_accepted, wait_until_done
from api.jobs.prompt_filters import check_prompt
from api.jobs.schemas import Job, Reproduction, ReproductionLinks
from api.jobs.serialize import serialize_job
from api.jobs.submit import insert_job, publish
from shared.core.broker import INTERACTIVE
from shared.core.ids import encode_id, new_id
from shared.core.model_catalog import ModelCatalog
from shared.core.schedulers import SCHEDULERS
from shared.images import models as image_models
from shared.images.receipts import upgrade
from shared.jobs.models import REPRODUCES
from shared.jobs.queries import lookups

EQUIVALENT_WITHIN = 8
"""Of 255 levels. Another batch shape differs by 1 or 2; above this an eye can find it."""


@dataclass(frozen=True)
class Comparison:
    """How alike two images are."""

    verdict: Literal["identical", "equivalent", "different"]
    max_pixel_difference: int
    """0 to 255; 255 for images of different sizes."""


async def reproduce(
    resources: Resources,
    principal: Principal,
    request: Request,
    *,
    image_id: str,
    job_id: str | None,
    seconds: int,
) -> Reproduction:
    """Begin to make the image again, or continue with `job_id`, and wait for at most `seconds`.

    Raises:
        Problem: 404 for an unknown image or a job that does not reproduce it; 422 when it cannot
            be made again or its job has failed.
    """
    original = await image_service.find(resources, principal, image_id)
    begun = await _begin(resources, principal, original) if job_id is None else None
    if isinstance(begun, Job):
        return await _follow_begun(
            resources, principal, request, original=original, job=begun, seconds=seconds
        )
    public_id = job_id or begun or ""
    after = await newest_event(resources, public_id)
    job = await _job_of(resources, principal, original, public_id)
    job = await wait_until_done(resources, principal, request, job, after=after, seconds=seconds)
    return await _result(resources, principal, original, job)


async def _follow_begun(
    resources: Resources,
    principal: Principal,
    request: Request,
    *,
    original: image_models.Image,
    job: Job,
    seconds: int,
) -> Reproduction:
    """Wait for a job that this request has queued: it is told of that, whatever else fails."""
    job = await wait_for_accepted(resources, principal, request, job, seconds)
    try:
        return await _result(resources, principal, original, job)
    except Problem as problem:
        if problem.kind.status != 503:
            raise
        return _serialize(resources, original, job, reason=None)


async def _result(
    resources: Resources, principal: Principal, original: image_models.Image, job: Job
) -> Reproduction:
    if job.finished_at is None:
        notice = await _early_notice(resources, original)
        return _serialize(resources, original, job, reason=notice)
    made = next(iter(job.ready_images), None)
    if job.state != "succeeded" or made is None:
        raise Problem("not_reproducible", _why_not(job))
    again = await image_service.find(resources, principal, made.id)
    result = await _compare(resources, original, again)
    reason = explain(original.receipt, again.receipt, result.verdict)
    return _serialize(resources, original, job, reason=reason, again=again, result=result)


async def _begin(
    resources: Resources, principal: Principal, original: image_models.Image
) -> Job | str:
    """The new job that makes it again, or the id of the unfinished one there is."""
    image_id = encode_id("img", original.id)
    receipt = original.receipt
    # Before filters are asked: what was accepted stays accepted, and is not looked at again.
    async with resources.tenant_transaction(principal) as session:
        if (job_id := await _unfinished(session, principal, image_id)) is not None:
            return job_id
    marks = await check_prompt(
        resources,
        principal,
        receipt["model"]["name"],
        receipt["prompt"],
        receipt["negative_prompt"],
    )
    prices = await resources.get(Estimates).prices()
    own = await own_loras(resources, principal)
    families = await resources.workers.families()
    async with resources.queueing_transaction(principal) as session:
        if (job_id := await _unfinished(session, principal, image_id)) is not None:
            return job_id
        statement = lookups.get_job(principal.tenant_id, original.job_id)
        source = (await session.scalars(statement)).one()
        again = options_of_receipt(original.receipt).get("hires") or {}
        resamples = original.receipt["kind"] == "upscale" and again.get("upscaler") == "lanczos"
        columns = columns_of_receipt(
            resources, principal, original, own, needs_loras=not resamples
        ) | {
            "init_image": source.init_image,
            "options": _options(original.receipt, source.options),
            "job_metadata": {REPRODUCES: image_id},
            "warnings": marks,
            "cost": source.cost // len(source.seeds),
        }
        charged = prices.gpu_seconds(work_of_image(columns)) if columns["cost"] else 0.0
        columns["estimated_gpu_seconds"] = charged
        async with admitted(resources, session, principal, Demand.of_columns(columns)):
            row, position = await insert_job(session, columns)
        family = families.get(row.model)
        shown = serialize_job(resources, row, family=family, queue_position=position)
    await publish(resources, row)
    return shown


async def _unfinished(session: AsyncSession, principal: Principal, image_id: str) -> str | None:
    """The id of the job that makes an image again right now."""
    statement = lookups.find_unfinished_marked(principal.tenant_id, REPRODUCES, image_id)
    job_id = (await session.scalars(statement)).first()
    return None if job_id is None else encode_id("job", job_id)


def columns_of_receipt(
    resources: Resources,
    principal: Principal,
    original: image_models.Image,
    own: OwnLoras,
    *,
    needs_loras: bool = True,
) -> dict[str, Any]:
    """A job's row with the settings of an image, but for its initial image, options and cost.

    Raises:
        Problem: 422, what made it no longer exists.
    """
    receipt = upgrade(original.receipt)
    model, scheduler = receipt["model"]["name"], receipt["scheduler"]["name"]
    spec = resources.catalog.get(model)
    if spec is None:
        raise Problem("not_reproducible", f"The model {model} no longer exists on this server.")
    for control in receipt.get("controls") or []:
        if needs_loras and resources.catalog.get_controlnet(control["name"]) is None:
            message = f"The ControlNet {control['name']} no longer exists on this server."
            raise Problem("not_reproducible", message)
    if receipt.get("references") and needs_loras and spec.ip_adapter is None:
        raise Problem("not_reproducible", f"The model {model} no longer has an IP-Adapter.")
    if scheduler not in SCHEDULERS:
        raise Problem("not_reproducible", f"The scheduler {scheduler} is no longer offered.")
    return {
        "id": new_id(),
        "tenant_id": principal.tenant_id,
        "api_key_id": principal.key_id,
        "queue_class": INTERACTIVE,
        "kind": receipt["kind"],
        "model": model,
        "prompt": receipt["prompt"],
        "negative_prompt": receipt["negative_prompt"],
        "seeds": [receipt["seed"]],
        "width": receipt["width"],
        "height": receipt["height"],
        "steps": receipt["steps"],
        "guidance_scale": receipt["guidance_scale"],
        "true_cfg_scale": receipt.get("true_cfg_scale"),  # receipts of older releases have none
        "scheduler": scheduler,
        "strength": receipt["strength"],
        # Receipts of older releases do not say: their initial images were stretched.
        "resize_mode": receipt.get("resize_mode"),
        "loras": loras_of_receipt(resources.catalog, receipt, own, needs_all=needs_loras),
        "output_format": receipt["output_format"],
        "batch_size": receipt["batch_size"],
        "session_id": original.session_id,
        "warnings": [],
        "max_attempts": resources.settings.max_attempts,
    }


def _options(receipt: dict[str, Any], named: dict[str, Any]) -> dict[str, Any]:
    """With the images that the job named, and what only the worker reads: the number of CPU
    threads, which is part of the bytes, and the second pass's own batch size, which may have had to
    shrink."""
    images = {name: named[name] for name in IMAGE_LISTS if name in named}
    options, second = options_of_receipt(receipt), receipt.get("second_pass")
    if receipt.get("cpu_threads") is not None:
        options["cpu_threads"] = receipt["cpu_threads"]
    if second is not None and "hires" in options:
        options["hires"] = options["hires"] | {"batch_size": second["batch_size"]}
    return options | images


def loras_of_receipt(
    catalog: ModelCatalog, receipt: dict[str, Any], own: OwnLoras, *, needs_all: bool
) -> list[dict[str, Any]]:
    """From the catalogue, or the very file that the tenant uploaded. Pixels are resampled without
    them: there they are only named, as the receipt names them.

    Raises:
        Problem: 422, one has gone and is needed.
    """
    recorded = receipt.get("loras") or []  # receipts of older releases have none
    if not needs_all:
        return [{name: lora[name] for name in ("name", "scale", "sha256")} for lora in recorded]
    again = []
    for lora in recorded:
        name, mine = lora["name"], own.get(lora["name"])
        is_mine = mine is not None and mine.sha256 == lora["sha256"]
        if catalog.get_lora(name) is None and not is_mine:
            raise Problem("not_reproducible", f"The LoRA {name} no longer exists on this server.")
        reference = mine.reference if mine is not None and is_mine else {}
        again.append({"name": name, "scale": lora["scale"], **reference})
    return again


async def _job_of(
    resources: Resources, principal: Principal, original: image_models.Image, job_id: str
) -> Job:
    parse_id("job", job_id, "job")
    job = await jobs.get(resources, principal, job_id)
    if job.metadata.get(REPRODUCES) != encode_id("img", original.id):
        raise Problem("not_found", "This job does not make this image again.")
    return job


def _why_not(job: Job) -> str:
    if job.state == "succeeded":
        return f"The image that job {job.id} made has been deleted."
    ended = f"{job.error.code}: {job.error.message}" if job.error else job.state
    return f"The job {job.id} to make it again ended as {ended}"


async def _compare(
    resources: Resources, original: image_models.Image, again: image_models.Image
) -> Comparison:
    same_pixels = original.pixel_sha256 is not None and original.pixel_sha256 == again.pixel_sha256
    if original.sha256 == again.sha256 or same_pixels:
        return Comparison("identical", 0)
    first = await image_service.read_object(resources, original.s3_key)
    second = await image_service.read_object(resources, again.s3_key)
    return await on_thread(compare_pixels, first.body, second.body)


def compare_pixels(first: bytes, second: bytes) -> Comparison:
    """Compare two images of our own making, decoded to RGB."""
    from PIL import Image, ImageChops

    formats = ("PNG", "WEBP", "JPEG")
    with (
        Image.open(io.BytesIO(first), formats=formats) as a,
        Image.open(io.BytesIO(second), formats=formats) as b,
    ):
        if a.size != b.size:
            return Comparison("different", 255)
        extrema = ImageChops.difference(a.convert("RGB"), b.convert("RGB")).getextrema()
    largest = max(int(high) for _, high in extrema)  # type: ignore[misc]  # RGB: one pair a band
    if largest == 0:
        return Comparison("identical", 0)
    return Comparison("equivalent" if largest <= EQUIVALENT_WITHIN else "different", largest)


_SIGNED = " The files differ: each is signed again, at its own time."


def explain(before: dict[str, Any], now: dict[str, Any], verdict: str) -> str:
    """One sentence: what on record differs between two makings."""
    differences = list(_differences(before, now))
    if verdict == "identical":
        sentence = "Every pixel is equal, and so is everything on record."
        if differences:
            sentence = f"Every pixel is equal, although {'; '.join(differences)}."
        return sentence + (_SIGNED if now.get("provenance") == "signed" else "")
    if not differences:
        return "Nothing on record differs; the hardware or its drivers may."
    sentence = "; ".join(differences)
    return f"{sentence[0].upper()}{sentence[1:]}."


def _differences(before: dict[str, Any], now: dict[str, Any]) -> list[str]:
    differences = []
    before, now = upgrade(before), upgrade(now)
    old_hash, new_hash = (receipt["model"]["content_hash"] for receipt in (before, now))
    if old_hash != new_hash:
        differences.append(
            f"the checkpoint has changed (content hash {old_hash} then, {new_hash} now)"
        )
    for field, kind in (("loras", "LoRA"), ("controls", "ControlNet")):
        old, new = (
            {one["name"]: one["sha256"] for one in receipt.get(field) or []}
            for receipt in (before, now)
        )
        differences += [
            f"the {kind} {name} has changed (hash {old[name]} then, {new[name]} now)"
            for name in old
            if name in new and old[name] != new[name]
        ]
    old_hash, new_hash = (
        (receipt.get("ip_adapter") or {}).get("sha256") for receipt in (before, now)
    )
    if old_hash != new_hash:
        differences.append(f"the IP-Adapter has changed (hash {old_hash} then, {new_hash} now)")
    for key, name in (
        ("device", "the device"),
        ("dtype", "the dtype"),
        ("batch_size", "the batch size"),
        ("prompt_grammar", "the grammar of weights"),
        ("cpu_threads", "the number of CPU threads"),
        ("notes", "the engine's notes"),
    ):
        if before.get(key) != now.get(key):
            differences.append(f"{name} was {before.get(key)} and is {now.get(key)}")
    then, today = before.get("second_pass") or {}, now.get("second_pass") or {}
    differences += [
        f"the second pass's {name.replace('_', ' ')} was {then.get(name)} and is {today.get(name)}"
        for name in ("dtype", "batch_size", "compile", "notes")
        if then.get(name) != today.get(name)
    ]
    then, today = before.get("provenance"), now.get("provenance")
    if then is not None and then != today:  # receipts of older releases have none
        differences.append(f"provenance was {then} and is {today}")
    then, today = before.get("speed", {}), now.get("speed", {})
    differences += [
        f"{name} was {_setting(then[name])} and is {_setting(today[name])}"
        for name in then
        # Receipts of older releases do not say.
        if name in today and then[name] != today[name]
    ]
    then, today = before.get("software", {}), now.get("software", {})
    differences += [
        f"{name} was {then.get(name)} and is {today.get(name)}"
        for name in ("torch", "diffusers", "cuda", "darkroom")
        if then.get(name) != today.get(name)
    ]
    return differences


async def _early_notice(resources: Resources, original: image_models.Image) -> str | None:
    """What the live workers' heartbeats already tell, before the job is done."""
    recorded = original.receipt["model"]
    served = [
        model
        for worker in await resources.workers.workers() or ()
        for model in worker.models
        if model.name == recorded["name"]
    ]
    if not served:
        return "No live worker serves the model now."
    if all(model.content_hash not in (None, recorded["content_hash"]) for model in served):
        return "The checkpoint has changed: no live worker has the recorded content hash."
    return None


def _serialize(
    resources: Resources,
    original: image_models.Image,
    job: Job,
    *,
    reason: str | None,
    again: image_models.Image | None = None,
    result: Comparison | None = None,
) -> Reproduction:
    return Reproduction(
        verdict=result.verdict if result else None,
        max_pixel_difference=result.max_pixel_difference if result else None,
        reason=reason,
        image=image_service.serialize(resources, again) if again is not None else None,
        job=job,
        links=_links(resources, original, job),
    )


def _links(resources: Resources, original: image_models.Image, job: Job) -> ReproductionLinks:
    here = f"{resources.settings.public_url}/v1/images/{encode_id('img', original.id)}"
    return ReproductionLinks(again=f"{here}/reproduce?job={job.id}", job=job.links.self)


def _setting(value: Any) -> str:
    """As `models.toml` has it."""
    return value if isinstance(value, str) else str(value).lower()
