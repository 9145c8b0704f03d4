"""What a key uses and how much work waits, as quotas and back-pressure ask."""

from datetime import datetime, timedelta

from sqlalchemy import (
    BigInteger,
    Delete,
    Insert,
    Integer,
    Select,
    Update,
    cast,
    delete,
    func,
    insert,
    literal,
    select,
    update,
)

from shared.batches.models import BatchFile
from shared.core.ids import earliest_id_at
from shared.images.models import Image, Upload
from shared.jobs.models import DeviceTime, Job
from shared.jobs.queries.transitions import SCAN_TIME, utc_day
from shared.jobs.state import JobState


def measure_use(key_id: str) -> Select[int, int, float, float]:
    """What a key uses, all as of one moment.

    (jobs queued or running, cost of those queued, GPU-seconds that the unfinished are estimated to
    take, GPU-seconds of the attempts that ended today)
    """
    waiting = func.sum(Job.cost).filter(Job.state == JobState.QUEUED)
    spent = (
        select(func.coalesce(func.sum(DeviceTime.gpu_seconds), 0.0))
        .where(DeviceTime.api_key_id == key_id, DeviceTime.day == utc_day(SCAN_TIME))
        .scalar_subquery()
    )
    return select(
        func.count(),
        cast(func.coalesce(waiting, 0), BigInteger),
        func.coalesce(func.sum(Job.estimated_gpu_seconds), 0.0),
        spent,
    ).where(Job.api_key_id == key_id, Job.finished_at.is_(None))


def hand_over(old_key_id: str, new_key_id: str) -> tuple[Update | Insert, ...]:
    """A key's use counts for the key that takes its place."""
    today = select(
        literal(new_key_id), DeviceTime.day, DeviceTime.slot, DeviceTime.tenant_id,
        DeviceTime.gpu_seconds,
    ).where(DeviceTime.api_key_id == old_key_id, DeviceTime.day == utc_day(SCAN_TIME))  # fmt: skip
    names = ["api_key_id", "day", "slot", "tenant_id", "gpu_seconds"]
    uploads = (
        update(table).where(table.api_key_id == old_key_id).values(api_key_id=new_key_id)
        for table in (Upload, BatchFile)
    )
    return insert(DeviceTime).from_select(names, today), *uploads


def purge_device_time(older_than: timedelta) -> Delete:
    """Retention: quotas need today's alone."""
    return delete(DeviceTime).where(DeviceTime.day < utc_day(SCAN_TIME - older_than))


def measure_queue(window: timedelta, now: datetime) -> Select[int, int]:
    """(cost of all that waits, cost of the images that were finished within the window).

    `now` may be the caller's clock: an image's id carries that of the worker that made it.
    """
    waiting = (
        select(func.coalesce(func.sum(Job.cost), 0))
        .where(Job.state == JobState.QUEUED)
        .scalar_subquery()
    )
    steps = cast(
        func.coalesce(Image.receipt["executed_steps"].astext, Image.receipt["steps"].astext),
        Integer,
    )
    pixels = cast(Image.width, BigInteger) * Image.height
    done = (
        select(func.coalesce(func.sum(pixels * steps), 0))
        .where(Image.id >= earliest_id_at(now - window))
        .scalar_subquery()
    )
    return select(cast(waiting, BigInteger), cast(done, BigInteger))
