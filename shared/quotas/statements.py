"""SQL of what a key has in hand, and of how much work waits and gets done in the whole system."""

from datetime import datetime, timedelta
from uuid import UUID

from sqlalchemy import BigInteger, Integer, Select, cast, func, select
from sqlalchemy.sql.elements import ColumnElement

from shared.gallery.models import Image
from shared.ids import earliest_id_at
from shared.jobs.models import Job
from shared.jobs.state import JobState


def take_turn(key_id: str) -> Select[None]:
    """Wait for other submissions with this key: two must not both see the last free place."""
    return select(func.pg_advisory_xact_lock(func.hashtextextended(f"quota {key_id}", 0)))


def count_unfinished(key_id: str) -> Select[int, int]:
    """(jobs queued or running, cost of those queued) that were submitted with this key."""
    waiting = func.sum(Job.cost).filter(Job.state == JobState.QUEUED)
    return select(func.count(), cast(func.coalesce(waiting, 0), BigInteger)).where(
        Job.api_key_id == key_id, Job.finished_at.is_(None)
    )


def sum_gpu_seconds(tenant_id: UUID, key_id: str, since: datetime) -> Select[float]:
    """Device time of the key's jobs that were submitted since then."""
    # Ids begin with the time of their making, so the tenant's index serves.
    spent: ColumnElement[float] = func.coalesce(func.sum(Job.gpu_seconds), 0.0)
    return select(spent).where(
        Job.tenant_id == tenant_id, Job.id >= earliest_id_at(since), Job.api_key_id == key_id
    )


def measure_queue(window: timedelta, now: datetime) -> Select[int, int]:
    """(cost of all that waits, cost of the pictures that were finished within the window).

    `now` may be the caller's clock: an image's id carries that of the worker that made it.
    """
    waiting = (
        select(func.coalesce(func.sum(Job.cost), 0))
        .where(Job.state == JobState.QUEUED)
        .scalar_subquery()
    )
    steps = cast(Image.receipt["steps"].astext, Integer)
    pixels = cast(Image.width, BigInteger) * Image.height
    done = (
        select(func.coalesce(func.sum(pixels * steps), 0))
        .where(Image.id >= earliest_id_at(now - window))
        .scalar_subquery()
    )
    return select(cast(waiting, BigInteger), cast(done, BigInteger))
