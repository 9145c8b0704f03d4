"""Metrics of jobs: accepted, waited, run, failed, lost."""

import time
from collections.abc import Iterable

from prometheus_client import Counter, Histogram

from shared.core.broker import QUEUE_CLASSES
from shared.core.errors import JOB_ERRORS
from shared.core.metrics import show_zeros
from shared.core.telemetry import Span
from shared.jobs.models import Job
from shared.jobs.state import AttemptOutcome

SEVERAL_MODELS = "several"
"""The label `model` of a batch whose lines name more than one."""

_WAITS = (0.01, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600, 1800, 3600, 14_400)
_RUNS = (0.05, 0.1, 0.25, 0.5, 1, 2, 4, 8, 15, 30, 60, 120, 300, 600, 1800)

SUBMITTED = Counter(
    "darkroom_jobs_submitted", "Jobs accepted into the database.", ["model", "queue_class"]
)

WAIT = Histogram(
    "darkroom_job_wait_seconds",
    "From a job's submission to its first claim by a worker, by the database's clock.",
    ["model", "queue_class"],
    buckets=_WAITS,
)

RUN = Histogram(
    "darkroom_job_run_seconds",
    "From the claim of an attempt to its end: generating, encoding, uploading and committing.",
    ["model", "queue_class", "outcome"],
    buckets=_RUNS,
)

FAILURES = Counter(
    "darkroom_job_failures",
    "Attempts that failed, by typed cause; one that is retried counts, too.",
    ["model", "code"],
)

LEASES_LOST = Counter(
    "darkroom_leases_lost",
    "Leases taken from workers that did not renew them, or whose process came back.",
    ["model"],
)

IMAGES = Counter("darkroom_images", "Images committed.", ["model"])


def watch_submissions(names: Iterable[str]) -> None:
    """Show the submissions for these models from now on."""
    show_zeros(SUBMITTED, names, QUEUE_CLASSES)


def watch_models(names: Iterable[str]) -> None:
    """Show what these models' attempts end in from now on."""
    models = tuple(names)
    show_zeros(WAIT, models, QUEUE_CLASSES)
    show_zeros(LEASES_LOST, models)
    show_zeros(IMAGES, models)
    show_zeros(FAILURES, models, JOB_ERRORS)
    show_zeros(RUN, models, QUEUE_CLASSES, (AttemptOutcome.SUCCEEDED, AttemptOutcome.FAILED))


class AttemptMetrics:
    """One attempt of a worker, from its claim on. Set `outcome`, and `code` of a failure."""

    def __init__(self, job: Job) -> None:
        self.outcome = AttemptOutcome.LOST
        """What it stays where nothing could be recorded: the lease runs out."""
        self.code: str | None = None
        self._job = job
        self._begun = time.monotonic()
        # Later attempts have waited for something else than a worker.
        if job.attempt == 1 and job.started_at is not None:
            waited = (job.started_at - job.created_at).total_seconds()
            WAIT.labels(job.model, job.queue_class).observe(max(0.0, waited))

    def end(self, span: Span, images: int) -> None:
        """It is over, with this many images."""
        job, outcome = self._job, self.outcome
        seconds = time.monotonic() - self._begun
        RUN.labels(job.model, job.queue_class, str(outcome)).observe(seconds)
        if outcome is AttemptOutcome.SUCCEEDED:
            IMAGES.labels(job.model).inc(images)
        span.set({"darkroom.outcome": str(outcome)})
        if outcome is AttemptOutcome.FAILED and self.code is not None:
            FAILURES.labels(job.model, self.code).inc()
            span.fail(self.code)


def lost(job: Job, code: str) -> None:
    """The database has taken the job from a worker that is gone."""
    LEASES_LOST.labels(job.model).inc()
    FAILURES.labels(job.model, code).inc()
