"""SQL of sessions as their owners look at them: list them, count them, list their images."""

from datetime import datetime
from uuid import UUID

from sqlalchemy import BigInteger, Select, func, select, tuple_

from shared.gallery.models import Image, Session
from shared.jobs.models import Job
from shared.tables import only

SessionRow = Select[str, datetime, int, int, datetime | None]


def list_sessions(tenant_id: UUID, limit: int, before: tuple[datetime, str] | None) -> SessionRow:
    """(id, made, images, jobs, latest image) of sessions, newest first."""
    statement = _described(tenant_id)
    if before is not None:
        statement = statement.where(tuple_(Session.created_at, Session.id) < before)
    return statement.order_by(Session.created_at.desc(), Session.id.desc()).limit(limit)


def get_session(tenant_id: UUID, session_id: str) -> SessionRow:
    """The same of one."""
    return _described(tenant_id).where(Session.id == session_id)


def find_session(tenant_id: UUID, session_id: str) -> Select[str]:
    """Its id, if it is there: to count what it holds takes as long as it is big."""
    return select(Session.id).where(Session.tenant_id == tenant_id, Session.id == session_id)


def list_images(tenant_id: UUID, session_id: str, limit: int, before: UUID | None) -> Select[Image]:
    """A session's images, newest first."""
    own = (Image.tenant_id == tenant_id, only(Image.session_id, session_id))
    statement = select(Image).where(*own)
    if before is not None:
        statement = statement.where(Image.id < before)
    return statement.order_by(Image.session_id.desc(), Image.id.desc()).limit(limit)


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
    ).where(Session.tenant_id == tenant_id)
