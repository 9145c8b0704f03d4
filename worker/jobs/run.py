"""One job, from its message to its commit: claim → generate → encode → upload → commit."""

import math
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import wait
from contextlib import AbstractContextManager, suppress
from dataclasses import replace
from datetime import timedelta
from typing import Any
from uuid import UUID

import structlog
from sqlalchemy.exc import SQLAlchemyError

from shared.core import telemetry
from shared.core.database import is_outage
from shared.core.errors import DeviceLost, Filtered, InternalError, JobError
from shared.core.filter_process import MadeImage, Prompt
from shared.core.filters import NOTHING, Findings, filtered_images
from shared.core.ids import encode_id
from shared.core.logging import get_logger
from shared.core.storage import EXTENSIONS
from shared.jobs import metrics
from shared.jobs.models import Job
from shared.jobs.queries import endings
from shared.jobs.state import AttemptOutcome
from worker.engine.interface import Canceled, Engine, GeneratedImage, Ticket
from worker.jobs.claim import claim_job
from worker.jobs.commit import (
    FinishedImage,
    charge_late,
    commit,
    delete_uncommitted,
    finish_image,
    refused_image,
    upload,
)
from worker.jobs.inputs import JobImages, image_request, load_images, resampled
from worker.jobs.lease import (
    Lease,
    LeaseLost,
    StopReason,
    record_stop,
    retry_database,
    retry_outage,
)
from worker.models.cache import ModelNotWarm
from worker.process import WorkerProcess

log = get_logger(__name__)

RETRY_DELAYS = (timedelta(seconds=1), timedelta(seconds=10), timedelta(minutes=1))
"""Pause before the second, third and later attempts."""

_BILL_SECONDS = 2.0
"""What a stopped attempt waits to learn what it has used: canceled rows leave with the tick."""

_POSTGRES = {"db.system.name": "postgresql"}


def run_job(worker: WorkerProcess, job_id: UUID, traceparent: str | None = None) -> None:
    """Run a job if it is still to be run; a stale or repeated message does nothing.

    Every way out leaves the database right: succeeded, failed, queued again, canceled, expired,
    or, if another worker has taken over, untouched.

    `traceparent` is the message's; without one the attempt continues the trace of the submission.

    Raises:
        WorkerLeaving: the worker was told to leave before the job was claimed.
    """
    started = time.monotonic()
    with claim_job(worker, job_id) as job:
        if job is None:
            log.info("claim_missed", job_id=str(job_id))
            return
        with (
            structlog.contextvars.bound_contextvars(
                job_id=str(job.id), attempt=job.attempt, tenant_id=str(job.tenant_id)
            ),
            worker.leases.hold(job) as lease,
            _span(job, traceparent, started) as span,
        ):
            telemetry.record("claim job", "client", started, time.monotonic(), _POSTGRES)
            _Attempt(worker, job, lease).run(span)


class _Attempt:
    """One attempt at a claimed job: it makes the images and commits, or records how it ended."""

    def __init__(self, worker: WorkerProcess, job: Job, lease: Lease) -> None:
        self._worker = worker
        self._job = job
        self._lease = lease
        self._tickets: list[Ticket] = []
        """Images that the engine makes."""
        self._images: list[FinishedImage] = []
        """Images that are in S3, or on their way."""
        self._filtered: list[dict[str, Any]] = []
        """Images that a filter has refused, as stored in `Job.filtered`."""
        self._submitted = 0.0
        """`time.monotonic()` when the engine was asked for them."""

    def run(self, span: telemetry.Span) -> None:
        """The attempt, published, measured, and over whatever happens."""
        job = self._job
        log.info("job_started", kind=job.kind, model=job.model, images=len(job.seeds))
        measured = metrics.AttemptMetrics(job)
        self._worker.progress.job_started(job)
        try:
            measured.outcome, measured.code = self._outcome()
        except SQLAlchemyError as error:
            # Postgres stayed out of reach: nothing can be recorded, the lease will run out. What
            # was uploaded may be committed for all we know; the sweep of attempts will tell.
            log.exception("database_unreachable", error=type(error).__name__)
        finally:
            self._worker.progress.attempt_over(job)
            measured.end(span, len(self._images))

    def _outcome(self) -> tuple[AttemptOutcome, str | None]:
        """How it ended, recorded, and the code of a failure."""
        try:
            done = self._perform()
        except LeaseLost:
            return self._handle_stopped(), None
        except JobError as error:
            return self._handle_failed(error), error.code
        except Exception as error:
            if is_outage(error):
                raise
            log.exception("job_crashed")
            crash = InternalError(type(error).__name__)
            return self._handle_failed(crash), crash.code
        return self._handle_succeeded(done), None

    # --- generate → encode → upload → commit -----------------------------------------------------

    def _perform(self) -> Job:
        """Make, encode and upload every image, then commit.

        Raises:
            LeaseLost: the job must stop, or another worker has it.
            JobError: it cannot be done.
        """
        try:
            with self._worker.models.use(self._job.model) as engine:
                return self._perform_on(engine)
        except ModelNotWarm:
            # Its message was on its way when the model was unloaded: it is handed back unharmed.
            self._lease.stop(StopReason.RELEASED)
            raise LeaseLost from None

    def _perform_on(self, engine: Engine) -> Job:
        worker = self._worker
        job = self._job
        lease = self._lease
        deadline = time.monotonic() + _seconds_left(job)
        prompt = worker.prompts.of(job)
        images = retry_outage(lambda: load_images(worker.storage, job), lease)
        larger = resampled(job, images.start, engine.model) if images.start else None
        self._have_filters()
        if larger is None:
            self._submit(engine, images)
        with suppress(SQLAlchemyError):  # The commit asks again, and may wait for the answer.
            prompt.look_up(worker.database)
        made = self._generated(deadline) if larger is None else iter([larger])
        for index, generated in enumerate(made):
            findings = self._look_at(generated)
            if findings.refusal is not None:
                self._filtered.append(refused_image(job, index, generated, findings.refusal))
                continue
            with worker.encoders, telemetry.span("encode image"):
                image = finish_image(
                    job,
                    index,
                    generated,
                    worker.provenance[job.model],
                    marks=findings.marks,
                )
            image = self._signed(image)
            self._images.append(image)
            upload(worker.storage, image, lease)
        if not self._images:
            raise Filtered(_about_filtered(self._filtered, len(job.seeds)))
        warnings = _warnings(engine, job) if larger is None else []
        if self._filtered:
            message = _about_filtered(self._filtered, len(job.seeds))
            warnings.append({"code": "images_filtered", "message": message})
        with telemetry.span("commit job", "client", attributes=_POSTGRES):
            return commit(
                worker.database,
                prompt,
                job,
                self._images,
                filtered=self._filtered,
                warnings=warnings,
                lease=lease,
            )

    def _signed(self, image: FinishedImage) -> FinishedImage:
        """With a manifest, where the model's images get one; it waits for an unavailable signer.

        Raises:
            LeaseLost: the job was stopped first.
            SignerUnavailable: the signer stayed away.
            SigningFailed: it cannot be signed.
        """
        signer, row = self._worker.signer, image.row
        if signer is None or self._worker.provenance[self._job.model] != "signed":
            return image
        title = f"{encode_id('img', row['id'])}.{EXTENSIONS[row['content_type']]}"

        def sign() -> bytes:
            return signer.sign(image.encoded.body, row["content_type"], row["receipt"], title)

        with telemetry.span("sign image"):
            return image.with_file(retry_outage(sign, self._lease))

    def _look_at(self, generated: GeneratedImage) -> Findings:
        """What the operator's filters say of an image.

        Raises:
            FilterUnavailable: one gave no answer, and nothing may pass unseen.
        """
        filters, job = self._worker.filters, self._job
        if filters is None:
            return NOTHING
        prompt = Prompt(job.prompt, job.negative_prompt, job.model, str(job.tenant_id))
        self._have_filters()
        with telemetry.span("filter image"):
            return filters.check(MadeImage(generated.pixels, prompt), self._is_stopped)

    def _have_filters(self) -> None:
        """Wait for them: images that nothing can look at would be made, and charged, in vain.

        Raises:
            LeaseLost: the job was stopped first.
            FilterUnavailable: they cannot be loaded, and nothing may pass unseen.
        """
        if (filters := self._worker.filters) is not None:
            retry_outage(lambda: filters.start(self._is_stopped), self._lease)

    def _is_stopped(self) -> bool:
        return self._lease.stop_reason is not None

    def _submit(self, engine: Engine, images: JobImages) -> None:
        """Ask for all images at once, each a request of its own, with its own seed.

        While the first is encoded and uploaded, or the prompt looked up and embedded, the device
        continues.
        """
        worker = self._worker
        job = self._job
        lease = self._lease
        loras = retry_outage(lambda: worker.loras.of(job.loras), lease)
        controls = worker.controlnets.of(job.options.get("controls", []), images.controls)
        self._submitted = time.monotonic()
        for index in range(len(job.seeds)):
            request = image_request(job, index, images, loras, controls)
            if worker.filters is not None and worker.filters.may_look:
                request = replace(request, previews=False)
            ticket = engine.submit(request, worker.progress.on_step(job, index))
            self._tickets.append(ticket)
            lease.on_stop(ticket.cancel)

    def _generated(self, deadline: float) -> Iterator[GeneratedImage]:
        """The job's images in order, each as soon as it is made."""
        for index, ticket in enumerate(self._tickets):
            image = self._result(ticket, deadline)
            self._worker.progress.image_made(self._job, index, image.steps)
            telemetry.record("wait for device", "internal", self._submitted, image.started_at)
            telemetry.record(
                "generate image",
                "internal",
                image.started_at,
                image.finished_at,
                {
                    "darkroom.gpu_seconds": image.gpu_seconds,
                    "darkroom.batch_size": image.facts.batch_size,
                },
            )
            yield image

    def _result(self, ticket: Ticket, deadline: float) -> GeneratedImage:
        """Wait for one image.

        Raises:
            LeaseLost: the job was stopped, or its finish deadline passed.
            JobError: the image cannot be made.
        """
        try:
            left = deadline - time.monotonic()
            return ticket.future.result(timeout=min(max(left, 0.0), threading.TIMEOUT_MAX))
        except TimeoutError:
            self._lease.stop(StopReason.EXPIRED)
        except Canceled:
            # Nobody stopped this job, so the engine itself is closing: hand the job back.
            self._lease.stop(StopReason.RELEASED)
        raise LeaseLost

    # --- finish ----------------------------------------------------------------------------------

    def _handle_succeeded(self, done: Job) -> AttemptOutcome:
        images = [*(image.event() for image in self._images), *filtered_images(self._filtered)]
        images.sort(key=lambda image: int(image["index"]))
        self._worker.progress.job_changed(done, images=images)
        log.info("job_succeeded", gpu_seconds=done.gpu_seconds)
        return AttemptOutcome.SUCCEEDED

    def _handle_failed(self, error: JobError) -> AttemptOutcome:
        # A lost device stops every job in flight, but it is not for free: one may be the cause.
        dies = isinstance(error, DeviceLost)
        job = self._job
        lease = self._lease
        if lease.stop_reason is not None and not dies:
            return self._handle_stopped()
        # When one image fails, its siblings would only waste the device.
        seconds = self._stop_engine()
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
                job.id,
                lease.attempt,
                error.code,
                error.message,
                gpu_seconds=seconds,
                filtered=self._filtered if isinstance(error, Filtered) else (),
            )
        retry = record_stop if dies else retry_database
        try:
            changed = retry(lambda: self._worker.transition(statement), lease)
        except LeaseLost:
            return self._handle_stopped()
        self._discard()
        state = changed and changed.state
        log.warning("job_failed", code=error.code, reason=error.message, now=state)
        return AttemptOutcome.FAILED

    def _handle_stopped(self) -> AttemptOutcome:
        worker = self._worker
        lease = self._lease
        seconds = self._stop_engine()
        reason = lease.stop_reason or StopReason.LOST
        end = {
            StopReason.CANCELED: endings.cancel_running,
            StopReason.EXPIRED: endings.expire_running,
            StopReason.RELEASED: endings.release,
        }.get(reason)
        changed = None
        if end is not None:
            statement = end(lease.job_id, lease.attempt, gpu_seconds=seconds)
            changed = record_stop(lambda: worker.transition(statement), lease)
            if changed is not None and reason is StopReason.RELEASED:
                worker.publish(changed)
        if changed is None:
            # Somebody else has ended the attempt, as the dispatcher does at a deadline.
            charge_late(worker.database, lease.job_id, lease.attempt, seconds)
        self._discard()
        log.info("job_stopped", reason=str(reason))
        return AttemptOutcome(reason)

    def _stop_engine(self) -> float:
        """Take back what is not made yet; the device seconds that all of it has used."""
        for ticket in self._tickets:
            ticket.cancel()
        wait([ticket.future for ticket in self._tickets], _BILL_SECONDS)
        return sum(ticket.gpu_seconds for ticket in self._tickets)

    def _discard(self) -> None:
        """Remove what an attempt without a commit has put into S3."""
        keys = [key for image in self._images for key in image.keys]
        if keys:
            worker = self._worker
            lease = self._lease
            delete_uncommitted(worker.database, worker.storage, lease.job_id, lease.attempt, keys)


def _span(
    job: Job, traceparent: str | None, started: float
) -> AbstractContextManager[telemetry.Span]:
    return telemetry.span(
        "run job",
        "consumer",
        parent=traceparent or job.traceparent,
        started=started,
        attributes={
            "darkroom.job_id": str(job.id),
            "darkroom.tenant_id": str(job.tenant_id),
            "darkroom.attempt": job.attempt,
            "darkroom.model": job.model,
            "darkroom.queue_class": job.queue_class,
            "darkroom.images": len(job.seeds),
        },
    )


def _seconds_left(job: Job) -> float:
    """Until the finish deadline, by the database's clock at the claim."""
    if job.finish_deadline is None or job.started_at is None:
        return math.inf
    return (job.finish_deadline - job.started_at).total_seconds()


def _about_filtered(filtered: Sequence[Mapping[str, Any]], images: int) -> str:
    first = f"{filtered[0]['filter']}: {filtered[0]['reason']}"
    count = f"{len(filtered)} of {images} images" if images > 1 else "The image"
    return f"{count} {'were' if len(filtered) > 1 else 'was'} refused by a filter. {first}"


def _warnings(engine: Engine, job: Job) -> list[dict[str, str]]:
    """One for each text of which the text encoder reads only the beginning."""
    warnings = []
    reading = job.options.get("prompt_syntax", "plain"), job.options.get("long_prompt", False)
    for field in ("prompt", "negative_prompt"):
        text = getattr(job, field)
        cut = engine.truncated_part(text, *reading) if text else None
        if cut:
            message = f"The text encoder reads only the beginning of {field}; not read: {cut!r}."
            warnings.append({"code": f"{field}_truncated", "message": message})
    return warnings
