"""SQL of what estimates are learnt from: attempts that ended lately, and unfinished work."""

from datetime import datetime
from typing import Any
from uuid import UUID

from sqlalchemy import BigInteger, Float, Integer, Select, cast, func, or_, select

from shared.batches.models import Batch
from shared.gallery.models import Image
from shared.ids import earliest_id_at
from shared.jobs.models import Job
from shared.jobs.state import JobState


def list_finished(since: datetime, limit: int) -> Select[Any]:
    """Attempts that made their first image since then, newest first.

    A row has `image_id`, the job's settings, `rows`, `device`, `gpu_seconds` of that image,
    `run_seconds`, `total_seconds` and the `estimate` of the submission. Images' ids begin with
    the time of their making, by the worker's clock, so that their index serves.
    """
    return (
        select(
            Image.id.label("image_id"),
            Job.model,
            Job.width,
            Job.height,
            Job.steps,
            Job.strength,
            Job.guidance_scale,
            func.cardinality(Job.seeds).label("images"),
            cast(Image.receipt["rows"].astext, Integer).label("rows"),
            Image.receipt["device"].astext.label("device"),
            Image.gpu_seconds,
            _seconds(Job.started_at, Job.finished_at).label("run_seconds"),
            _seconds(Job.created_at, Job.finished_at).label("total_seconds"),
            Job.estimate,
        )
        .join(Job, Job.id == Image.job_id)
        .where(
            Image.id >= earliest_id_at(since),
            Image.index == 0,
            Job.attempt == Image.attempt,
            Job.state == JobState.SUCCEEDED,
        )
        .order_by(Image.id.desc())
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
            cast(func.sum(Job.cost * func.coalesce(Job.strength, 1.0)), Float),
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
