"""Rows of the database as the job that clients see."""

import hashlib
import math
import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import cast
from uuid import UUID

from sqlalchemy.ext.asyncio import AsyncSession

from api.context import Resources
from api.images.schemas import FilteredImage, JobImage
from api.images.service import serialize_image
from api.jobs.estimates import work_of_job
from api.jobs.options import options_of_receipt
from api.jobs.schemas import (
    Attempt,
    ErrorInfo,
    Eta,
    Job,
    JobLinks,
    JobLora,
    JobMetrics,
    JobWarning,
    Progress,
)
from api.jobs.submission import ResizeMode
from shared.core.families import possible_steps
from shared.core.filters import filtered_images
from shared.core.ids import encode_id
from shared.images import queries as image_queries
from shared.images.models import Image
from shared.jobs import models
from shared.jobs.queries import lookups
from shared.jobs.queries.transitions import EXACT_POSITIONS
from shared.jobs.state import JobState

_URL_REFRESH = 300
"""Seconds; well within the life of a presigned URL."""


async def read_details(
    session: AsyncSession, jobs: Sequence[models.Job]
) -> tuple[Mapping[UUID, list[Image]], Mapping[UUID, list[models.JobAttempt]]]:
    """The images and the attempts of each job, by its id."""
    ids = [job.id for job in jobs]
    images: dict[UUID, list[Image]] = defaultdict(list)
    for image in await session.scalars(image_queries.list_images_of_jobs(ids)):
        images[image.job_id].append(image)
    attempts: dict[UUID, list[models.JobAttempt]] = defaultdict(list)
    for attempt in await session.scalars(lookups.list_attempts(ids)):
        attempts[attempt.job_id].append(attempt)
    return images, attempts


def serialize_job(
    resources: Resources,
    job: models.Job,
    *,
    family: str | None,
    images: Sequence[Image] = (),
    attempts: Sequence[models.JobAttempt] = (),
    progress: Progress | None = None,
    queue_position: int | None = None,
    eta: Eta | None = None,
) -> Job:
    """The wire form of a job. URLs are signed here; S3 is not asked.

    `family` is its model's, if it is known.
    """
    job_id = encode_id("job", job.id)
    executed = _executed_steps(job, family, images)
    return Job.of(
        job,
        **options_of_receipt(job.options),
        id=job_id,
        batch_id=encode_id("batch", job.batch_id) if job.batch_id else None,
        executed_steps=executed,
        init_image=job.init_image["ref"] if job.init_image else None,
        mask_image=(job.init_image or {}).get("mask", {}).get("ref"),
        resize_mode=_resize_mode(job),
        loras=[JobLora(name=lora["name"], scale=lora["scale"]) for lora in job.loras],
        images=_images(resources, job, images),
        progress=progress if job.state == JobState.RUNNING else _final_progress(job, executed),
        queue_position=None if queue_position is None else min(queue_position, EXACT_POSITIONS),
        queue_position_exact=None if queue_position is None else queue_position <= EXACT_POSITIONS,
        eta=eta,
        attempts=[_attempt(attempt) for attempt in attempts],
        error=_error(job.error_code, job.error_message),
        warnings=[JobWarning(**warning) for warning in job.warnings],
        metrics=_metrics(job),
        metadata=job.job_metadata,
        links=_links(resources.settings.public_url, job_id),
    )


def etag_of(job: Job) -> str:
    """Changes with whatever a client could see change.

    The database counts transitions in `sequence`; progress, the queue and stars move without one.
    URLs of images expire, so for a job with images the tag changes every few minutes.
    """
    facts = (
        job.progress.model_dump() if job.progress else None,
        job.queue_position,
        job.executed_steps,
        _coarse(job.eta),
        [image.starred for image in job.ready_images],
        int(time.time() // _URL_REFRESH) if job.images else None,
    )
    digest = hashlib.blake2b(repr(facts).encode(), digest_size=6).hexdigest()
    return f'W/"{job.sequence}-{digest}"'


def _coarse(eta: Eta | None) -> tuple[int, int] | None:
    """An estimate moves a little each time; a tag follows it in steps of about a quarter."""
    if eta is None:
        return None
    left = eta.p50.timestamp() - time.time()
    step = 1 << max(0, math.ceil(math.log2(max(left / 4, 1))))
    return step, int(eta.p50.timestamp() // step)


def _images(
    resources: Resources, job: models.Job, images: Sequence[Image]
) -> list[JobImage | FilteredImage]:
    ready = [serialize_image(image, resources.storage) for image in images]
    if not job.filtered:
        return list(ready)
    filtered = [FilteredImage(**one) for one in filtered_images(job.filtered)]
    return sorted([*ready, *filtered], key=lambda image: image.index)


def _executed_steps(job: models.Job, family: str | None, images: Sequence[Image]) -> int | None:
    """As the engine counted them, once there is an image; before that as the family counts."""
    recorded = images[0].receipt.get("executed_steps") if images else None
    if isinstance(recorded, int):
        return recorded
    passes = [] if job.kind == "upscale" else [(job.steps, job.strength)]
    if (hires := job.options.get("hires")) is not None:
        passes.append((hires["steps"], hires["strength"]))
    run = [possible_steps(*one, job.scheduler, family) for one in passes]
    return sum(map(max, run)) if all(len(steps) == 1 for steps in run) else None


def _resize_mode(job: models.Job) -> ResizeMode | None:
    mode = cast("ResizeMode | None", job.resize_mode)
    return mode or (None if job.init_image is None else "stretch")


def _final_progress(job: models.Job, executed: int | None) -> Progress | None:
    if job.state != JobState.SUCCEEDED:
        return None
    steps = executed or work_of_job(job).steps
    return Progress(step=steps, steps=steps, fraction=1.0)


def _error(code: str | None, message: str | None) -> ErrorInfo | None:
    return None if code is None else ErrorInfo(code=code, message=message)


def _attempt(attempt: models.JobAttempt) -> Attempt:
    return Attempt.of(attempt, error=_error(attempt.error_code, attempt.error_message))


def _metrics(job: models.Job) -> JobMetrics:
    return JobMetrics(
        queue_ms=_milliseconds(job.created_at, job.started_at),
        run_ms=_milliseconds(job.started_at, job.finished_at),
        gpu_seconds=job.gpu_seconds,
    )


def _milliseconds(start: datetime | None, end: datetime | None) -> float | None:
    if start is None or end is None:
        return None
    return round((end - start).total_seconds() * 1000, 1)


def _links(public_url: str, job_id: str) -> JobLinks:
    here = f"{public_url}/v1/jobs/{job_id}"
    return JobLinks(
        self=here, events=f"{here}/events", cancel=f"{here}/cancel", images=f"{here}/images"
    )
