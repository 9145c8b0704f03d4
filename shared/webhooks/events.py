"""The events that webhooks tell of, and the body of each."""

from enum import StrEnum

from shared.jobs.state import JobState


class EventType(StrEnum):
    """Every event's name on the wire. A name never changes its meaning."""

    JOB_STARTED = "job.started"
    """A worker has begun an attempt; a job that is tried again starts again."""
    JOB_PROGRESS = "job.progress"
    """Some steps are done. Only for those who ask; never repeated, and dropped when late."""
    JOB_SUCCEEDED = "job.succeeded"
    JOB_FAILED = "job.failed"
    JOB_CANCELED = "job.canceled"
    JOB_EXPIRED = "job.expired"
    BATCH_VALIDATED = "batch.validated"
    """All lines of the file were read; its jobs begin."""
    BATCH_COMPLETED = "batch.completed"
    BATCH_FAILED = "batch.failed"
    BATCH_CANCELED = "batch.canceled"
    ENDPOINT_TEST = "endpoint.test"
    """Sent by POST /v1/webhook-endpoints/{id}/test to that endpoint alone, enabled or not."""
    ENDPOINT_DISABLED = "endpoint.disabled"
    """Darkroom has given up on an endpoint; told to all other endpoints of its tenant."""


ENDS_OF_JOBS = {
    JobState.SUCCEEDED: EventType.JOB_SUCCEEDED,
    JobState.FAILED: EventType.JOB_FAILED,
    JobState.CANCELED: EventType.JOB_CANCELED,
    JobState.EXPIRED: EventType.JOB_EXPIRED,
}
"""State that a transition leads to -> its event. What leads elsewhere has none."""


STARTS_OF_JOBS = {JobState.RUNNING: EventType.JOB_STARTED}
"""The event of a claim. Only of a claim: a running job also changes when it is asked to stop."""


JOB_EVENTS = (EventType.JOB_STARTED, EventType.JOB_PROGRESS, *ENDS_OF_JOBS.values())


BATCH_EVENTS = (
    EventType.BATCH_VALIDATED,
    EventType.BATCH_COMPLETED,
    EventType.BATCH_FAILED,
    EventType.BATCH_CANCELED,
)


SUBSCRIBABLE = (*JOB_EVENTS, *BATCH_EVENTS)
"""What an endpoint may ask for; the events of endpoints come unasked."""


DEFAULT_JOB_EVENTS = tuple(ENDS_OF_JOBS.values())
"""What a job's own webhook gets when it names no events."""


DEFAULT_BATCH_EVENTS = BATCH_EVENTS
"""What a batch's own webhook gets when it names no events."""


DEFAULT_EVENTS = (*DEFAULT_JOB_EVENTS, *BATCH_EVENTS)
"""What an endpoint gets when it names no events: how things ended, not how they go."""


SENT_ONCE = frozenset({EventType.JOB_PROGRESS})
"""Best effort: one attempt, soon or never."""
