"""The states of a job, and which may follow which.

::

    queued ──claim────────────────────▶ running
    queued ──cancel───────────────────▶ canceled
    queued ──start or finish deadline─▶ expired
    running ─commit───────────────────▶ succeeded
    running ─fail─────────────────────▶ failed
    running ─cancel───────────────────▶ canceled
    running ─finish deadline──────────▶ expired
    running ─release, passing cause,
             lost lease───────────────▶ queued
    running ─claim of a lost lease────▶ running
    failed | canceled | expired
            ─retry by the client──────▶ queued
"""

from enum import StrEnum


class JobState(StrEnum):
    """Where a job is. Terminal states never change again, except by a client's explicit retry."""

    QUEUED = "queued"
    """Entered by submission, by a lost lease, by a retryable failure, by a worker that hands its
    work back, and by a client's retry. Left by a claim, a cancellation or a deadline."""

    RUNNING = "running"
    """Entered by a claim, which takes a lease and a new attempt number. Left by the holder of
    that attempt, or by the dispatcher once the lease has run out."""

    SUCCEEDED = "succeeded"
    """Entered by the commit of all of the job's images in one transaction."""

    FAILED = "failed"
    """Entered when the cause cannot pass or the attempts are used up. `error_code` says why."""

    CANCELED = "canceled"
    """Entered when a client asks for it: at once when queued, within one tick when running."""

    EXPIRED = "expired"
    """Entered when the job could not start (or finish) before the deadline its client set."""


TERMINAL_STATES = frozenset(
    {JobState.SUCCEEDED, JobState.FAILED, JobState.CANCELED, JobState.EXPIRED}
)

RETRYABLE_STATES = frozenset({JobState.FAILED, JobState.CANCELED, JobState.EXPIRED})
"""States from which `POST /v1/jobs/{id}/retry` puts a job back in the queue."""


class AttemptOutcome(StrEnum):
    """How one attempt at a job ended; null while it runs."""

    SUCCEEDED = "succeeded"
    FAILED = "failed"
    """With an error code. Whether the job continues is the job's state."""
    CANCELED = "canceled"
    RELEASED = "released"
    """The worker handed the job back unharmed (shutdown, drained): costs the job no attempt."""
    LOST = "lost"
    """The lease ran out: the worker was killed, frozen or cut off."""
    EXPIRED = "expired"
    """The job's finish deadline passed while it ran."""
