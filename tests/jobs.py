"""Jobs as the API inserts them, for tests that have no API in front of the database."""

from typing import Any
from uuid import UUID

from sqlalchemy import Select, Text, Uuid, cast, func, select
from sqlalchemy.dialects.postgresql import Insert, insert
from sqlalchemy.orm import Session
from sqlalchemy.sql.dml import ReturningInsert

from shared.core.database import Given
from shared.core.ids import new_id
from shared.images.models import Session as SessionRow
from shared.images.queries import session_lock
from shared.jobs.models import Job
from shared.jobs.state import JobState


def job_columns(tenant_id: UUID, **fields: Any) -> dict[str, Any]:
    """The columns of a small text-to-image job for the simulated model."""
    return {
        "id": new_id(),
        "tenant_id": tenant_id,
        "session_id": "s1",
        "kind": "txt2img",
        "model": "sim",
        "queue_class": "interactive",
        "prompt": "a red house",
        "seeds": [7],
        "width": 64,
        "height": 64,
        "steps": 4,
        "guidance_scale": 5.0,
        "scheduler": "ddim",
        "output_format": "png",
        "job_metadata": {},
        "cost": 64 * 64 * 4,
        "max_attempts": 3,
        **fields,
    }


def as_one(given: Given[Select[Job]]) -> Select[Job]:
    """The statement with its values, for helpers that take any statement."""
    statement, values = given
    return statement.params(values)


def image_columns(job: Job, index: int = 0, **fields: Any) -> dict[str, Any]:
    """The row of an image of the attempt in hand, without its prompt and its objects."""
    key = f"{job.session_id}/{job.id}/{job.attempt}/{index:02}"
    return {
        "id": new_id(),
        "tenant_id": job.tenant_id,
        "job_id": job.id,
        "session_id": job.session_id,
        "index": index,
        "attempt": job.attempt,
        "seed": job.seeds[index],
        "width": job.width,
        "height": job.height,
        "content_type": "image/png",
        "bytes": 1,
        "sha256": "0" * 64,
        "s3_key": f"{key}.png",
        "thumbnail_s3_key": f"{key}.thumb.webp",
        "receipt": {},
        "gpu_seconds": 1.0,
        **fields,
    }


def accept(session: Session, tenant_id: UUID, **fields: Any) -> Job:
    """Insert a job, and its session on first use; does not publish it."""
    columns = job_columns(tenant_id, **fields)
    session.execute(ensure_session(tenant_id, columns["session_id"]))
    return session.scalars(insert_job(columns)).one()


def insert_job(columns: dict[str, Any]) -> ReturningInsert[Job]:
    """A queued job with these columns, which may be SQL."""
    return insert(Job).values(**columns, state=JobState.QUEUED).returning(Job)


def ensure_session(tenant_id: UUID, session_id: str) -> Insert:
    """Make the session on its first use, under the lock that submissions hold against deletion."""
    tenant, name = cast(tenant_id, Uuid), cast(session_id, Text)
    held = func.pg_advisory_xact_lock_shared(session_lock(tenant, name)).table_valued("held")
    rows = select(tenant, name).select_from(held)
    return insert(SessionRow).from_select(["tenant_id", "id"], rows).on_conflict_do_nothing()
