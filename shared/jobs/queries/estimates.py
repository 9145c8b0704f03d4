"""SQL of what estimates are learnt from: attempts that ended lately, and unfinished work."""

from datetime import datetime
from typing import Any
from uuid import UUID

from sqlalchemy import BigInteger, Float, Integer, Select, and_, cast, func, or_, select
from sqlalchemy.orm import aliased

from shared.batches.models import Batch
from shared.core.ids import earliest_id_at
from shared.images.models import Image
from shared.jobs.models import Job
from shared.jobs.state import JobState


def list_finished(since: datetime, limit: int) -> Select[Any]:
    """Attempts that made their last image since then, newest first.

    A row has `image_id` (of the last), the job's settings, `rows`, `device` and `gpu_seconds` of
    the first image, `run_seconds`, `total_seconds` and the `estimate` of the submission. Images'
    ids begin with the time of their making, by the worker's clock, so that their index serves; the
    last one is made just before the commit, the first one perhaps minutes earlier.
    """
    first, last = aliased(Image), aliased(Image)
    return (
        select(
            last.id.label("image_id"),
            Job.model,
            Job.width,
            Job.height,
            Job.guidance_scale,
            Job.cost,
            func.cardinality(Job.seeds).label("images"),
            cast(first.receipt["rows"].astext, Integer).label("rows"),
            first.receipt["device"].astext.label("device"),
            first.gpu_seconds,
            _seconds(Job.started_at, Job.finished_at).label("run_seconds"),
            _seconds(Job.created_at, Job.finished_at).label("total_seconds"),
            Job.estimate,
        )
        .join(Job, Job.id == last.job_id)
        .join(first, and_(first.job_id == Job.id, first.index == 0))
        .where(
            last.id >= earliest_id_at(since),
            last.index == func.cardinality(Job.seeds) - 1,
            Job.attempt == last.attempt,
            Job.state == JobState.SUCCEEDED,
        )
        .order_by(last.id.desc())
        .limit(limit)
    )


def measure_loads() -> Select[str, str, str, int, int, float]:
    """(model, lane, state, jobs, images, cost) of unfinished jobs; not those of paused batches."""
    paused = select(Batch.id).where(Batch.paused)
    return (
        select(
            Job.model,
            Job.lane,
            Job.state,
            func.count(),
            cast(func.sum(func.cardinality(Job.seeds)), BigInteger),
            cast(func.sum(Job.cost), Float),
        )
        .where(
            Job.finished_at.is_(None),
            or_(
                Job.state == JobState.RUNNING,
                Job.batch_id.is_(None),
                Job.batch_id.not_in(paused),
            ),
        )
        .group_by(Job.model, Job.lane, Job.state)
    )


def is_paused(batch_id: UUID) -> Select[bool]:
    """Whether a batch is paused."""
    return select(Batch.paused).where(Batch.id == batch_id)


def _seconds(start: Any, end: Any) -> Any:
    return cast(func.extract("epoch", end - start), Float)
