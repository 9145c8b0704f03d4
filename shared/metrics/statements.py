"""SQL of what waits, over all tenants: numbers only."""

from typing import Any

from sqlalchemy import Select, and_, func, or_, select

from shared.batches.models import Batch
from shared.jobs.models import Job
from shared.jobs.state import JobState
from shared.webhooks.claims import is_held
from shared.webhooks.models import DeliveryState, WebhookDelivery

_NOW = func.statement_timestamp()


def count_waiting() -> Select[str, str, int, Any]:
    """(model, lane, jobs that may run, seconds that the oldest has waited)."""
    since = func.coalesce(Job.not_before, Job.created_at)
    paused = select(Batch.id).where(Batch.paused, Batch.finished_at.is_(None))
    may_run = and_(
        Job.state == JobState.QUEUED,
        or_(Job.not_before.is_(None), Job.not_before <= _NOW),
        # The few paused batches are hashed once.
        or_(Job.batch_id.is_(None), ~Job.batch_id.in_(paused)),
    )
    age = func.greatest(0, func.extract("epoch", _NOW - func.min(since)))
    return (
        select(Job.model, Job.lane, func.count(), age).where(may_run).group_by(Job.model, Job.lane)
    )


def count_running() -> Select[str, str, int]:
    """(model, lane, jobs in workers' hands)."""
    return (
        select(Job.model, Job.lane, func.count())
        .where(Job.state == JobState.RUNNING)
        .group_by(Job.model, Job.lane)
    )


def count_deliveries() -> Select[int, Any]:
    """(webhook deliveries that could go out now, seconds since the oldest was due)."""
    age = func.extract("epoch", _NOW - func.min(WebhookDelivery.due_at))
    return select(func.count(), func.greatest(0, func.coalesce(age, 0))).where(
        WebhookDelivery.state == DeliveryState.PENDING,
        WebhookDelivery.due_at <= _NOW,
        or_(WebhookDelivery.lease_until.is_(None), WebhookDelivery.lease_until < _NOW),
        ~is_held(WebhookDelivery),
    )
