"""Rows of the ledger as the job that clients see."""

import hashlib
import math
import time
from collections.abc import Sequence
from datetime import datetime
from typing import Any, cast

from api.jobs.estimates import work_of_job
from api.jobs.schemas import (
    Attempt,
    ErrorInfo,
    Eta,
    Job,
    JobImage,
    JobLinks,
    JobMetrics,
    JobWarning,
    Progress,
    ResizeMode,
)
from shared.core.ids import to_wire
from shared.core.storage import Storage
from shared.images.models import Image
from shared.jobs import models
from shared.jobs.state import JobState

_URL_REFRESH = 300
"""Seconds; well within the life of a presigned URL."""


def present_job(
    job: models.Job,
    *,
    public_url: str,
    storage: Storage,
    images: Sequence[Image] = (),
    attempts: Sequence[models.JobAttempt] = (),
    progress: Progress | None = None,
    queue_position: int | None = None,
    eta: Eta | None = None,
) -> Job:
    """The wire form of a job. URLs are signed here; nothing is asked of S3."""
    job_id = to_wire("job", job.id)
    return Job(
        id=job_id,
        kind=job.kind,
        state=job.state,
        sequence=job.sequence,
        model=job.model,
        session_id=job.session_id,
        batch_id=to_wire("batch", job.batch_id) if job.batch_id else None,
        prompt=job.prompt,
        negative_prompt=job.negative_prompt,
        width=job.width,
        height=job.height,
        steps=job.steps,
        executed_steps=_executed_steps(job, images),
        guidance_scale=job.guidance_scale,
        scheduler=job.scheduler,
        strength=job.strength,
        init_image=job.init_image["ref"] if job.init_image else None,
        resize_mode=_resize_mode(job),
        output_format=job.output_format,
        seeds=job.seeds,
        images=[present_image(image, storage) for image in images],
        progress=progress if job.state == JobState.RUNNING else _final_progress(job),
        queue_position=queue_position,
        eta=eta,
        cancel_requested=job.cancel_requested,
        attempts=[_attempt(attempt) for attempt in attempts],
        error=_error(job.error_code, job.error_message),
        warnings=[JobWarning(**warning) for warning in job.warnings],
        metrics=_metrics(job),
        metadata=job.job_metadata,
        created_at=job.created_at,
        started_at=job.started_at,
        finished_at=job.finished_at,
        links=_links(public_url, job_id),
    )


def present_image(image: Image, storage: Storage) -> JobImage:
    """The wire form of an image inside its job."""
    return JobImage(**image_fields(image, storage))


def image_fields(image: Image, storage: Storage) -> dict[str, Any]:
    """What every wire form of an image has."""
    return {
        "id": to_wire("img", image.id),
        "index": image.index,
        "seed": image.seed,
        "width": image.width,
        "height": image.height,
        "content_type": image.content_type,
        "bytes": image.bytes,
        "sha256": image.sha256,
        "url": storage.presign(image.s3_key),
        "thumbnail_url": storage.presign(image.thumbnail_s3_key),
        "starred": image.starred,
    }


def etag_of(job: Job) -> str:
    """Changes with whatever a client could see change.

    The ledger counts transitions in `sequence`; progress, the queue and stars move without one.
    URLs of images expire, so for a job with images the tag changes every few minutes.
    """
    facts = (
        job.progress.model_dump() if job.progress else None,
        job.queue_position,
        _coarse(job.eta),
        [image.starred for image in job.images],
        int(time.time() // _URL_REFRESH) if job.images else None,
    )
    digest = hashlib.blake2b(repr(facts).encode(), digest_size=6).hexdigest()
    return f'W/"{job.sequence}-{digest}"'


def _coarse(eta: Eta | None) -> tuple[int, int] | None:
    """An estimate moves a little with every look; a tag follows it in steps of about a quarter."""
    if eta is None:
        return None
    left = eta.p50.timestamp() - time.time()
    step = 1 << max(0, math.ceil(math.log2(max(left / 4, 1))))
    return step, int(eta.p50.timestamp() // step)


def _executed_steps(job: models.Job, images: Sequence[Image]) -> int:
    """As the engine counted them, once there is an image; before that as they were planned."""
    made = images[0].receipt.get("executed_steps") if images else None
    return made if isinstance(made, int) else work_of_job(job).steps


def _resize_mode(job: models.Job) -> ResizeMode | None:
    if job.kind != "img2img":
        return None
    return cast("ResizeMode | None", job.resize_mode) or "stretch"


def _final_progress(job: models.Job) -> Progress | None:
    if job.state != JobState.SUCCEEDED:
        return None
    steps = work_of_job(job).steps
    return Progress(step=steps, steps=steps, fraction=1.0)


def _error(code: str | None, message: str | None) -> ErrorInfo | None:
    return None if code is None else ErrorInfo(code=code, message=message)


def _attempt(attempt: models.JobAttempt) -> Attempt:
    return Attempt(
        number=attempt.number,
        worker=attempt.worker,
        device=attempt.device,
        started_at=attempt.started_at,
        finished_at=attempt.finished_at,
        outcome=attempt.outcome,
        error=_error(attempt.error_code, attempt.error_message),
    )


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
    here = f"{public_url.rstrip('/')}/v1/jobs/{job_id}"
    return JobLinks(
        self=here, events=f"{here}/events", cancel=f"{here}/cancel", images=f"{here}/images"
    )
