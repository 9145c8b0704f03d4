"""SQL of sessions as their owners look at them: list them, count them, list their images."""

from datetime import datetime
from uuid import UUID

from sqlalchemy import BigInteger, ColumnElement, Select, func, select, tuple_

from shared.gallery.models import Image, Session
from shared.jobs.models import Job
from shared.tables import only

SessionRow = Select[str, datetime, int, int, datetime | None, datetime]


def list_sessions(tenant_id: UUID, limit: int, before: tuple[datetime, str] | None) -> SessionRow:
    """(id, made, images, jobs, latest image, last use) of sessions, the last used first."""
    statement, used = _described(tenant_id), _last_used(tenant_id)
    if before is not None:
        statement = statement.where(tuple_(used, Session.id) < before)
    return statement.order_by(used.desc(), Session.id.desc()).limit(limit)


def get_session(tenant_id: UUID, session_id: str) -> SessionRow:
    """The same of one."""
    return _described(tenant_id).where(Session.id == session_id)


def find_session(tenant_id: UUID, session_id: str) -> Select[str]:
    """Its id, if it is there: to count what it holds takes as long as it is big."""
    return select(Session.id).where(Session.tenant_id == tenant_id, Session.id == session_id)


def list_images(
    tenant_id: UUID, session_id: str, limit: int, before: UUID | None, without: str
) -> Select[Image]:
    """A session's images, newest first, but for those of jobs that have the key `without` in their
    metadata."""
    own = (Image.tenant_id == tenant_id, only(Image.session_id, session_id))
    # One look at the job of each image of the page; as a join it could begin with all jobs.
    marked = select(Job.job_metadata.has_key(without)).where(Job.id == Image.job_id)
    statement = select(Image).where(*own, marked.scalar_subquery().is_not(True))
    if before is not None:
        statement = statement.where(Image.id < before)
    return statement.order_by(Image.session_id.desc(), Image.id.desc()).limit(limit)


def _last_used(tenant_id: UUID) -> ColumnElement[datetime]:
    """When its newest job was submitted. Read, not kept: the row of a session would be written by
    every job of a batch, one after the other."""
    newest = (
        select(Job.created_at)
        .where(Job.tenant_id == tenant_id, only(Job.session_id, Session.id))
        .order_by(Job.session_id.desc(), Job.id.desc())
        .limit(1)
        .scalar_subquery()
    )
    return func.coalesce(newest, Session.created_at)


def _described(tenant_id: UUID) -> SessionRow:
    images = (Image.tenant_id == tenant_id, Image.session_id == Session.id)
    jobs = (Job.tenant_id == tenant_id, Job.session_id == Session.id)
    latest = (
        select(Image.created_at)
        .where(Image.tenant_id == tenant_id, only(Image.session_id, Session.id))
        .order_by(Image.session_id.desc(), Image.id.desc())
        .limit(1)
    )
    return select(
        Session.id,
        Session.created_at,
        select(func.count(type_=BigInteger)).where(*images).select_from(Image).scalar_subquery(),
        select(func.count(type_=BigInteger)).where(*jobs).select_from(Job).scalar_subquery(),
        latest.scalar_subquery(),
        _last_used(tenant_id),
    ).where(Session.tenant_id == tenant_id)
