"""The states of a batch, and how the states of its jobs make its end.

::

    validating ──▶ queued ──first job starts──▶ running ──last job ends──▶ succeeded | partial |
        │            │                             ▲                       failed | canceled |
        └──▶ failed  └──all jobs end unstarted──▶  └────retry-failed────── expired
"""

from collections.abc import Mapping
from enum import StrEnum

from shared.jobs.state import JobState


class BatchState(StrEnum):
    """Where a batch is. A terminal state is left only by a client's retry."""

    VALIDATING = "validating"
    """Entered by the first statement of the ingest, left by its last one. Both are in one
    transaction, so that nobody ever sees a batch without all of its jobs."""

    QUEUED = "queued"
    """Entered when all lines were read and all jobs are in the ledger."""

    RUNNING = "running"
    """Entered when a job of it has started. A paused batch stays in the state it is in."""

    SUCCEEDED = "succeeded"
    """Every line became a picture."""

    PARTIAL = "partial"
    """Some lines became pictures; others failed, expired, or were skipped as invalid."""

    FAILED = "failed"
    """The file was refused, or no job succeeded and at least one failed."""

    CANCELED = "canceled"
    """A client canceled it before its last job had ended; what was done is kept."""

    EXPIRED = "expired"
    """Its deadlines passed before any job had succeeded or failed."""


ACTIVE_STATES = frozenset({BatchState.QUEUED, BatchState.RUNNING})
"""States in which jobs of the batch may still be fed."""

TERMINAL_STATES = frozenset(BatchState) - ACTIVE_STATES - {BatchState.VALIDATING}


def end_state(counts: Mapping[str, int], skipped_lines: int) -> BatchState:
    """The terminal state of a batch whose jobs have all ended.

    Args:
        counts: how many jobs are in each `JobState`.
        skipped_lines: invalid lines that were left out at the client's wish.
    """
    succeeded = counts.get(JobState.SUCCEEDED, 0)
    unsuccessful = sum(counts.values()) - succeeded
    if counts.get(JobState.CANCELED, 0):
        # Single jobs canceled by hand leave a batch partial; if none succeeded, it is canceled.
        return BatchState.PARTIAL if succeeded else BatchState.CANCELED
    if succeeded:
        return BatchState.PARTIAL if unsuccessful or skipped_lines else BatchState.SUCCEEDED
    return BatchState.FAILED if counts.get(JobState.FAILED, 0) else BatchState.EXPIRED
