"""SQL of what a key has in hand and has used, and of how much work waits and gets done in all."""

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
from shared.gallery.models import Image, Upload
from shared.ids import earliest_id_at
from shared.jobs.models import DeviceTime, Job
from shared.jobs.state import JobState
from shared.jobs.statements import SCAN_TIME, utc_day


def take_turn(key_id: str) -> Select[None]:
    """Wait for other submissions with this key: two must not both see the last free place.

    The turn ends with the transaction.
    """
    return select(func.pg_advisory_xact_lock(func.hashtextextended(f"quota {key_id}", 0)))


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


def sum_uploads(key_id: str) -> Select[int]:
    """Bytes of the initial images and batch files that are kept for a key."""
    sums = [
        select(func.coalesce(func.sum(table.bytes), 0))
        .where(table.api_key_id == key_id)
        .scalar_subquery()
        for table in (Upload, BatchFile)
    ]
    return select(cast(sums[0] + sums[1], BigInteger))


def hand_over(old_key_id: str, new_key_id: str) -> tuple[Update | Insert, ...]:
    """What counts for a key counts for the one that takes its place: it does not begin anew."""
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
