"""Make a picture again from its receipt, and say how alike the two are and why."""

import io
from dataclasses import dataclass
from typing import Any, Literal

from fastapi import Request

from api.context import Resources, parse_id
from api.core.errors import Problem
from api.core.fairness import on_thread
from api.core.principal import Principal
from api.core.quotas import admitted, work_of_row
from api.images import service as image_service
from api.images.schemas import Reproduction, ReproductionLinks
from api.jobs import service as jobs
from api.jobs.schemas import REPRODUCES, Job
from api.jobs.waiting import newest_event, wait_for_accepted, wait_until_done
from shared.core.broker import INTERACTIVE
from shared.core.ids import new_id, to_wire
from shared.core.schedulers import SCHEDULERS
from shared.images import models as image_models
from shared.jobs import models
from shared.jobs.calibration import work_of
from shared.jobs.metrics import SUBMITTED
from shared.jobs.queries import lookups

EQUIVALENT_WITHIN = 8
"""Of 255 levels. Another batch shape differs by 1 or 2; above this an eye can find it."""


@dataclass(frozen=True)
class Comparison:
    """How alike two pictures are."""

    verdict: Literal["identical", "equivalent", "different"]
    max_pixel_difference: int
    """0 to 255; 255 for pictures of different sizes."""


async def reproduce(
    resources: Resources,
    principal: Principal,
    request: Request,
    *,
    image_id: str,
    job_id: str | None,
    seconds: int,
) -> Reproduction:
    """Begin to make the image again, or go on with `job_id`, and wait for at most `seconds`.

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
    wire_id = job_id or begun or ""
    after = await newest_event(resources, wire_id)
    job = await _job_of(resources, principal, original, wire_id)
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
        return _present(resources, original, job, reason=None)


async def _result(
    resources: Resources, principal: Principal, original: image_models.Image, job: Job
) -> Reproduction:
    if job.finished_at is None:
        notice = await _early_notice(resources, original)
        return _present(resources, original, job, reason=notice)
    if job.state != "succeeded" or not job.images:
        raise Problem("not_reproducible", _why_not(job))
    again = await image_service.find(resources, principal, job.images[0].id)
    result = await _compare(resources, original, again)
    reason = explain(original.receipt, again.receipt, result.verdict)
    return _present(resources, original, job, reason=reason, again=again, result=result)


async def _begin(
    resources: Resources, principal: Principal, original: image_models.Image
) -> Job | str:
    """The new job that makes it again, or the id of the unfinished one there is."""
    image_id = to_wire("img", original.id)
    prices = await resources.estimates.prices()
    async with resources.queueing_transaction(principal) as session:
        unfinished = lookups.find_unfinished_marked(principal.tenant_id, REPRODUCES, image_id)
        found = (await session.scalars(unfinished)).first()
        if found is not None:
            return to_wire("job", found)
        statement = lookups.get_job(principal.tenant_id, original.job_id)
        source = (await session.scalars(statement)).one()
        columns = _columns(resources, principal, original, source)
        columns["estimated_gpu_seconds"] = prices.gpu_seconds(
            work_of(
                model=columns["model"],
                width=columns["width"],
                height=columns["height"],
                guidance_scale=columns["guidance_scale"],
                images=1,
                cost=columns["cost"],
            )
        )
        async with admitted(resources, session, principal, work_of_row(columns)):
            row, position = await jobs.insert_job(session, columns)
        shown = jobs.present(resources, row, queue_position=position)
    await resources.publisher.publish(row)
    SUBMITTED.labels(row.model, row.lane).inc()
    return shown


def _columns(
    resources: Resources, principal: Principal, original: image_models.Image, source: models.Job
) -> dict[str, Any]:
    receipt = original.receipt
    model, scheduler = receipt["model"]["name"], receipt["scheduler"]["name"]
    if resources.catalog.get(model) is None:
        raise Problem("not_reproducible", f"The model {model} is not in the catalogue any more.")
    if scheduler not in SCHEDULERS:
        raise Problem("not_reproducible", f"The scheduler {scheduler} is not offered any more.")
    return {
        "id": new_id(),
        "tenant_id": principal.tenant_id,
        "api_key_id": principal.key_id,
        "lane": INTERACTIVE,
        "kind": receipt["kind"],
        "model": model,
        "prompt": receipt["prompt"],
        "negative_prompt": receipt["negative_prompt"],
        "seeds": [receipt["seed"]],
        "width": receipt["width"],
        "height": receipt["height"],
        "steps": receipt["steps"],
        "guidance_scale": receipt["guidance_scale"],
        "scheduler": scheduler,
        "strength": receipt["strength"],
        # Receipts of older releases do not say: their initial images were stretched.
        "resize_mode": receipt.get("resize_mode"),
        "init_image": source.init_image,
        "output_format": receipt["output_format"],
        "rows": receipt["rows"],
        "session_id": original.session_id,
        "job_metadata": {REPRODUCES: to_wire("img", original.id)},
        "warnings": [],
        "cost": source.cost // len(source.seeds),
        "max_attempts": resources.settings.max_attempts,
    }


async def _job_of(
    resources: Resources, principal: Principal, original: image_models.Image, job_id: str
) -> Job:
    parse_id("job", job_id, "job")
    job = await jobs.get(resources, principal, job_id)
    if job.metadata.get(REPRODUCES) != to_wire("img", original.id):
        raise Problem("not_found", "This job does not make this image again.")
    return job


def _why_not(job: Job) -> str:
    if job.state == "succeeded":
        return f"What the job {job.id} made of it has been deleted."
    ended = f"{job.error.code}: {job.error.message}" if job.error else job.state
    return f"The job {job.id} to make it again ended as {ended}"


async def _compare(
    resources: Resources, original: image_models.Image, again: image_models.Image
) -> Comparison:
    if original.sha256 == again.sha256:
        return Comparison("identical", 0)
    first = await image_service.read_object(resources, original.s3_key)
    second = await image_service.read_object(resources, again.s3_key)
    return await on_thread(compare_pixels, first.body, second.body)


def compare_pixels(first: bytes, second: bytes) -> Comparison:
    """Compare two pictures of our own making, decoded to RGB."""
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


def explain(before: dict[str, Any], now: dict[str, Any], verdict: str) -> str:
    """One sentence: what on record differs between two makings."""
    differences = list(_differences(before, now))
    if verdict == "identical":
        if not differences:
            return "Every pixel is equal, and so is everything on record."
        return f"Every pixel is equal, although {'; '.join(differences)}."
    if not differences:
        return "Nothing on record differs; the hardware or its drivers may."
    sentence = "; ".join(differences)
    return f"{sentence[0].upper()}{sentence[1:]}."


def _differences(before: dict[str, Any], now: dict[str, Any]) -> list[str]:
    found = []
    old_hash, new_hash = (receipt["model"]["content_hash"] for receipt in (before, now))
    if old_hash != new_hash:
        found.append(f"the checkpoint has changed (content hash {old_hash} then, {new_hash} now)")
    for key, name in (
        ("device", "the device"),
        ("dtype", "the dtype"),
        ("rows", "the number of rows"),
        ("cpu_threads", "the number of CPU threads"),
        ("notes", "the engine's notes"),
    ):
        if before.get(key) != now.get(key):
            found.append(f"{name} was {before.get(key)} and is {now.get(key)}")
    then, today = before.get("speed", {}), now.get("speed", {})
    found += [
        f"{name} was {_setting(then[name])} and is {_setting(today[name])}"
        for name in then
        # Receipts of older releases do not say.
        if name in today and then[name] != today[name]
    ]
    then, today = before.get("software", {}), now.get("software", {})
    found += [
        f"{name} was {then.get(name)} and is {today.get(name)}"
        for name in ("torch", "diffusers", "cuda", "darkroom")
        if then.get(name) != today.get(name)
    ]
    return found


async def _early_notice(resources: Resources, original: image_models.Image) -> str | None:
    """What the live workers' announcements already tell, before the job is done."""
    recorded = original.receipt["model"]
    served = [
        model
        for worker in await resources.roster.workers() or ()
        for model in worker.models
        if model.name == recorded["name"]
    ]
    if not served:
        return "No live worker serves the model now."
    if all(model.content_hash not in (None, recorded["content_hash"]) for model in served):
        return "The checkpoint has changed: no live worker has the recorded content hash."
    return None


def _present(
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
        image=image_service.present(resources, again) if again is not None else None,
        job=job,
        links=_links(resources, original, job),
    )


def _links(resources: Resources, original: image_models.Image, job: Job) -> ReproductionLinks:
    here = f"{resources.settings.public_url.rstrip('/')}/v1/images/{to_wire('img', original.id)}"
    return ReproductionLinks(again=f"{here}/reproduce?job={job.id}", job=job.links.self)


def _setting(value: Any) -> str:
    """As `models.toml` has it."""
    return value if isinstance(value, str) else str(value).lower()
