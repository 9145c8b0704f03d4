"""One job, from its message to its commit: claim → generate → encode → upload → commit."""

import math
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, suppress
from datetime import timedelta
from uuid import UUID

import structlog
from PIL import Image
from sqlalchemy.exc import SQLAlchemyError

from shared.core import telemetry
from shared.core.database import is_outage
from shared.core.errors import DeviceLost, InternalError, JobError
from shared.core.logging import get_logger
from shared.jobs import metrics
from shared.jobs.models import Job
from shared.jobs.queries import endings
from shared.jobs.state import AttemptOutcome
from worker.engine.errors import Canceled
from worker.engine.interface import Engine, GeneratedImage, ImageRequest, Ticket
from worker.jobs.claim import claimed
from worker.jobs.commit import InHand, Picture, commit, encode_picture, upload
from worker.jobs.inputs import load_init_image
from worker.jobs.lease import Lease, StopReason
from worker.jobs.retry import LeaseGone, record_stop, with_ledger, with_storage
from worker.models.cache import NotResident
from worker.process import WorkerProcess

log = get_logger(__name__)


RETRY_DELAYS = (timedelta(seconds=1), timedelta(seconds=10), timedelta(minutes=1))
"""Pause before the second, third and later attempts."""


_POSTGRES = {"db.system.name": "postgresql"}


def run_job(worker: WorkerProcess, job_id: UUID, traceparent: str | None = None) -> None:
    """Run a job if it is still to be run; a stale or repeated message does nothing.

    Every way out leaves the ledger right: succeeded, failed, queued again, canceled, expired, or,
    if another worker has taken over, untouched.

    `traceparent` is the message's; without one the attempt continues the trace of the submission.

    Raises:
        WorkerLeaving: the worker was told to leave before the job was claimed.
    """
    begun = time.monotonic()
    with claimed(worker, job_id) as job:
        if job is None:
            log.info("claim_missed", job_id=str(job_id))
            return
        with (
            structlog.contextvars.bound_contextvars(
                job_id=str(job.id), attempt=job.attempt, tenant_id=str(job.tenant_id)
            ),
            worker.leases.hold(job) as lease,
            _span(job, traceparent, begun) as span,
        ):
            telemetry.record("claim job", "client", begun, time.monotonic(), _POSTGRES)
            _run_claimed(worker, job, lease, span)


def _run_claimed(worker: WorkerProcess, job: Job, lease: Lease, span: telemetry.Span) -> None:
    log.info("job_started", kind=job.kind, model=job.model, images=len(job.seeds))
    measured = metrics.Attempt(job)
    worker.progress.job_started(job)
    in_hand = InHand()
    try:
        try:
            done = _perform(worker, job, lease, in_hand)
        except LeaseGone:
            measured.outcome = _handle_stopped(worker, lease, in_hand)
        except JobError as error:
            measured.code = error.code
            measured.outcome = _handle_failed(worker, job, lease, in_hand, error)
        except Exception as error:
            if is_outage(error):
                raise
            log.exception("job_crashed")
            crash = InternalError(type(error).__name__)
            measured.code = crash.code
            measured.outcome = _handle_failed(worker, job, lease, in_hand, crash)
        else:
            measured.outcome = _handle_succeeded(worker, done, in_hand.pictures)
    except SQLAlchemyError as error:
        # The ledger stayed out of reach: nothing can be recorded, the lease will run out. What was
        # uploaded may be committed for all we know; the sweep of fruitless attempts will tell.
        log.exception("ledger_unreachable", error=type(error).__name__)
    finally:
        worker.progress.attempt_over(job)
        measured.end(span)


def _span(
    job: Job, traceparent: str | None, begun: float
) -> AbstractContextManager[telemetry.Span]:
    return telemetry.span(
        "run job",
        "consumer",
        parent=traceparent or job.traceparent,
        begun=begun,
        attributes={
            "darkroom.job_id": str(job.id),
            "darkroom.tenant_id": str(job.tenant_id),
            "darkroom.attempt": job.attempt,
            "darkroom.model": job.model,
            "darkroom.lane": job.lane,
            "darkroom.images": len(job.seeds),
        },
    )


def _perform(worker: WorkerProcess, job: Job, lease: Lease, in_hand: InHand) -> Job:
    """Make, encode and upload every image, then commit."""
    try:
        with worker.models.use(job.model) as engine:
            return _perform_on(engine, worker, job, lease, in_hand)
    except NotResident:
        # Its message was on its way when the model was unloaded: the job is handed back unharmed.
        lease.stop(StopReason.RELEASED)
        raise LeaseGone from None


def _perform_on(
    engine: Engine, worker: WorkerProcess, job: Job, lease: Lease, in_hand: InHand
) -> Job:
    deadline = time.monotonic() + _seconds_left(job)
    prompt = worker.prompts.of(job)
    _submit(worker, engine, job, lease, in_hand.tickets)
    with suppress(SQLAlchemyError):  # The commit asks again, and has the patience.
        prompt.look_up(worker.database)
    images = _generated(in_hand.tickets, lease, deadline)
    for index, generated in enumerate(images):
        with worker.encoders, telemetry.span("encode image"):
            picture = encode_picture(job, index, generated)
        in_hand.pictures.append(picture)
        upload(worker.storage, picture, lease)
    warnings = _warnings(engine, job)
    with telemetry.span("commit job", "client", attributes=_POSTGRES):
        return commit(
            worker.database, prompt, job, in_hand.pictures, warnings=warnings, lease=lease
        )


def _submit(
    worker: WorkerProcess, engine: Engine, job: Job, lease: Lease, tickets: list[Ticket]
) -> None:
    """Ask for all images at once, each a request of its own, with its own seed.

    While the first is encoded and uploaded, the device goes on. So it does while the prompt is
    looked up, and embedded if it is new.
    """
    start = with_storage(lambda: load_init_image(worker.storage, job), lease)
    for index in range(len(job.seeds)):
        on_step = worker.progress.on_step(job, index)
        tickets.append(engine.submit(_request(job, index, start), on_step))
        lease.on_stop(tickets[-1].cancel)


def _generated(
    tickets: Sequence[Ticket], lease: Lease, deadline: float
) -> Iterator[GeneratedImage]:
    """The job's images in order, each as soon as it is made."""
    for ticket in tickets:
        image = _result(ticket, lease, deadline)
        telemetry.record(
            "generate image",
            "internal",
            image.started_at,
            image.finished_at,
            {"darkroom.gpu_seconds": image.gpu_seconds, "darkroom.rows": image.facts.rows},
        )
        yield image


def _result(ticket: Ticket, lease: Lease, deadline: float) -> GeneratedImage:
    """Wait for one image.

    Raises:
        LeaseGone: the job was stopped, or its finish deadline passed.
        JobError: the image cannot be made.
    """
    try:
        left = deadline - time.monotonic()
        return ticket.future.result(timeout=min(max(left, 0.0), threading.TIMEOUT_MAX))
    except TimeoutError:
        lease.stop(StopReason.EXPIRED)
    except Canceled:
        # Nobody stopped this job, so the engine itself is closing: hand the job back.
        lease.stop(StopReason.RELEASED)
    raise LeaseGone


def _seconds_left(job: Job) -> float:
    """Until the finish deadline, by the database's clock at the claim."""
    if job.finish_deadline is None or job.started_at is None:
        return math.inf
    return (job.finish_deadline - job.started_at).total_seconds()


def _request(job: Job, index: int, start: Image.Image | None) -> ImageRequest:
    return ImageRequest(
        prompt=job.prompt,
        negative_prompt=job.negative_prompt,
        seed=job.seeds[index],
        width=job.width,
        height=job.height,
        steps=job.steps,
        guidance_scale=job.guidance_scale,
        scheduler=job.scheduler,
        strength=job.strength,
        init_image=start,
        lane="bulk" if job.lane == "bulk" else "interactive",
        previews=job.previews,
        rows=job.rows,
    )


def _warnings(engine: Engine, job: Job) -> list[dict[str, str]]:
    warnings = []
    for field in ("prompt", "negative_prompt"):
        text = getattr(job, field)
        cut = engine.truncated_part(text) if text else None
        if cut:
            message = f"The text encoder reads only the beginning of {field}; not read: {cut!r}."
            warnings.append({"code": f"{field}_truncated", "message": message})
    return warnings


def _handle_succeeded(
    worker: WorkerProcess, job: Job, pictures: Sequence[Picture]
) -> AttemptOutcome:
    worker.progress.job_changed(job, images=[picture.event() for picture in pictures])
    log.info("job_succeeded", gpu_seconds=job.gpu_seconds)
    return AttemptOutcome.SUCCEEDED


def _handle_failed(
    worker: WorkerProcess, job: Job, lease: Lease, in_hand: InHand, error: JobError
) -> AttemptOutcome:
    # A lost device stops every job in hand, but it is not for free: one of them may be the cause.
    dies = isinstance(error, DeviceLost)
    if lease.stop_reason is not None and not dies:
        return _handle_stopped(worker, lease, in_hand)
    # When one image fails, its siblings would only waste the device.
    seconds = in_hand.stop()
    if error.retryable:
        statement = endings.fail_or_retry(
            job.id,
            lease.attempt,
            error.code,
            error.message,
            RETRY_DELAYS[min(job.failures, len(RETRY_DELAYS) - 1)],
            gpu_seconds=seconds,
            worker_dies=dies,
        )
    else:
        statement = endings.fail(
            job.id, lease.attempt, error.code, error.message, gpu_seconds=seconds
        )
    patiently = record_stop if dies else with_ledger
    try:
        changed = patiently(lambda: worker.transition(statement), lease)
    except LeaseGone:
        return _handle_stopped(worker, lease, in_hand)
    _discard(worker, lease, in_hand.pictures)
    log.warning("job_failed", code=error.code, reason=error.message, now=changed and changed.state)
    return AttemptOutcome.FAILED


def _handle_stopped(worker: WorkerProcess, lease: Lease, in_hand: InHand) -> AttemptOutcome:
    seconds = in_hand.stop()
    end = {
        StopReason.CANCELED: endings.cancel_running,
        StopReason.EXPIRED: endings.expire_running,
        StopReason.RELEASED: endings.release,
    }.get(lease.stop_reason or StopReason.LOST)
    changed = None
    if end is not None:
        statement = end(lease.job_id, lease.attempt, gpu_seconds=seconds)
        changed = record_stop(lambda: worker.transition(statement), lease)
        if changed is not None and lease.stop_reason is StopReason.RELEASED:
            worker.publish(changed)
    if changed is None and seconds:
        # Somebody else has ended the attempt, as the dispatcher does at a deadline.
        worker.charge_late(lease.job_id, lease.attempt, seconds)
    _discard(worker, lease, in_hand.pictures)
    reason = lease.stop_reason or StopReason.LOST
    log.info("job_stopped", reason=str(reason))
    return AttemptOutcome(reason)


def _discard(worker: WorkerProcess, lease: Lease, pictures: Sequence[Picture]) -> None:
    """Remove what an attempt without a commit has put into S3; retention sweeps what is missed."""
    if pictures:
        keys = [key for picture in pictures for key in picture.keys]
        worker.discard(lease.job_id, lease.attempt, keys)
