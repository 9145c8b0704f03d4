"""Judge a trial by what clients saw, the database and S3 alone; logs prove nothing.

I1  every job that was accepted reaches exactly one terminal state, and keeps it;
I2  at most one set of images is committed for a job, by one attempt, and only by a success;
I3  every committed image exists in S3, is what its row says, and equals a replay of its seed;
I4  every terminal job of a tenant with a healthy receiver is delivered, under one webhook-id;
I5  nothing of another tenant is seen.
"""

import hashlib
import io
from collections import Counter, defaultdict
from dataclasses import dataclass, field
from typing import Any
from uuid import UUID

import numpy as np
from PIL import Image as PILImage
from sqlalchemy import select

from shared.core.storage import ObjectMissing
from shared.images.models import Image
from shared.jobs.models import Job, JobAttempt
from tests.chaos.system import System
from worker.engine.interface import ImageRequest
from worker.engine.simulated import image_of


@dataclass
class Report:
    """What the checker found."""

    jobs: int = 0
    states: Counter[str] = field(default_factory=Counter)
    lost: int = 0
    duplicated: int = 0
    wasted_runs: int = 0
    """Attempts beyond the first that the jobs took: GPU work done again."""
    violations: list[str] = field(default_factory=list)


def check(system: System, *, expect: str | None = "succeeded") -> Report:
    """Judge every job that was accepted; `expect` is the state that each must end in, if any."""
    system.watch_ends()
    with system.database.begin() as session:
        jobs = {job.id: job for job in session.scalars(select(Job))}
        attempts: dict[UUID, list[JobAttempt]] = defaultdict(list)
        for attempt in session.scalars(select(JobAttempt).order_by(JobAttempt.number)):
            attempts[attempt.job_id].append(attempt)
        images: dict[UUID, list[Image]] = defaultdict(list)
        for image in session.scalars(select(Image).order_by(Image.index)):
            images[image.job_id].append(image)
    report = Report(jobs=len(system.history.accepted))
    for job_id, promised in system.history.accepted.items():
        job = jobs.get(job_id)
        if job is None:
            report.lost += 1
            report.violations.append(f"I1 {job_id}: accepted, and the database does not know it")
            continue
        report.states[job.state] += 1
        _check_end(system, report, job, expect)
        _check_attempts(report, job, attempts[job_id], images[job_id])
        for image in images[job_id]:
            _check_image(system, report, job, promised, image)
        report.wasted_runs += max(0, len(attempts[job_id]) - 1)
    report.violations += system.deliveries.violations(system.history.ended)
    return report


def _check_end(system: System, report: Report, job: Job, expect: str | None) -> None:
    ended = system.history.ended.get(job.id)
    if ended is None:
        report.lost += 1
        report.violations.append(f"I1 {job.id}: still {job.state}")
    elif ended != (job.state, job.sequence):
        report.violations.append(f"I1 {job.id}: was seen {ended[0]} and is {job.state} now")
    elif expect is not None and job.state != expect:
        report.violations.append(f"I1 {job.id}: {job.state} ({job.error_code})")


def _check_attempts(
    report: Report, job: Job, attempts: list[JobAttempt], images: list[Image]
) -> None:
    succeeded = [attempt.number for attempt in attempts if attempt.outcome == "succeeded"]
    committed = {image.attempt for image in images}
    expected = {job.attempt} if job.state == "succeeded" else set()
    if set(succeeded) != expected or len(succeeded) > 1 or committed != expected:
        report.duplicated += 1
        report.violations.append(
            f"I2 {job.id}: {job.state} at attempt {job.attempt}, successes {succeeded}, "
            f"images of {sorted(committed)}"
        )
    if [attempt.number for attempt in attempts] != list(range(1, job.attempt + 1)):
        report.violations.append(f"I2 {job.id}: attempts are missing from the record")
    if any(attempt.outcome is None for attempt in attempts) and job.finished_at is not None:
        report.violations.append(f"I2 {job.id}: an attempt is still open")


def _check_image(
    system: System, report: Report, job: Job, promised: dict[str, Any], image: Image
) -> None:
    problem = None
    try:
        body = system.storage.get(image.s3_key).body
    except ObjectMissing:
        problem = "its object does not exist"
    else:
        if hashlib.sha256(body).hexdigest() != image.sha256:
            problem = "its object is not what the row says"
        elif image.seed != promised["seeds"][image.index]:
            problem = "it has another seed than was promised"
        elif not np.array_equal(_pixels(body), image_of(_replay(promised, image.index))):
            problem = "a replay of its seed gives another image"
    if problem is not None:
        report.violations.append(f"I3 {job.id}/{image.index}: {problem}")


def _pixels(body: bytes) -> Any:
    return np.asarray(PILImage.open(io.BytesIO(body)).convert("RGB"))


def _replay(promised: dict[str, Any], index: int) -> ImageRequest:
    """From what the client was told when the job was accepted."""
    return ImageRequest(
        prompt=promised["prompt"],
        negative_prompt=promised["negative_prompt"],
        seed=promised["seeds"][index],
        width=promised["width"],
        height=promised["height"],
        steps=promised["steps"],
        guidance_scale=promised["guidance_scale"],
        scheduler=promised["scheduler"],
    )
