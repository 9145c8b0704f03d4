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
    """Entered when all lines were read and all jobs are in the database."""

    RUNNING = "running"
    """Entered when a job of it has started. A paused batch stays in the state it is in."""

    SUCCEEDED = "succeeded"
    """Every line became an image."""

    PARTIAL = "partial"
    """Some lines became images; others failed, expired, or were skipped as invalid."""

    FAILED = "failed"
    """The file was refused, or no job succeeded and at least one failed."""

    CANCELED = "canceled"
    """A client canceled it before its last job had ended; the images made by then are kept."""

    EXPIRED = "expired"
    """Its deadlines passed before any job had succeeded or failed."""


ACTIVE_STATES = frozenset({BatchState.QUEUED, BatchState.RUNNING})
"""States in which jobs of the batch may still be enqueued."""

TERMINAL_STATES = frozenset(BatchState) - ACTIVE_STATES - {BatchState.VALIDATING}


def end_state(
    counts: Mapping[str, int], *, skipped_lines: int, cancel_requested: bool
) -> BatchState:
    """The terminal state of a batch whose jobs have all ended.

    Args:
        counts: how many jobs are in each `JobState`.
        skipped_lines: invalid lines that were left out at the client's wish.
        cancel_requested: the batch as a whole was canceled, not only single jobs of it.
    """
    succeeded = counts.get(JobState.SUCCEEDED, 0)
    if cancel_requested and counts.get(JobState.CANCELED, 0):
        return BatchState.CANCELED
    if succeeded:
        whole = succeeded == sum(counts.values()) and not skipped_lines
        return BatchState.SUCCEEDED if whole else BatchState.PARTIAL
    if counts.get(JobState.FAILED, 0):
        return BatchState.FAILED
    return BatchState.EXPIRED if counts.get(JobState.EXPIRED, 0) else BatchState.CANCELED
