"""SQL of sessions, prompts, images and uploads. Every statement takes the tenant."""

import hashlib
from collections.abc import Iterable, Sequence
from datetime import timedelta
from typing import Any
from uuid import UUID

from sqlalchemy import Select, Update, func, insert, or_, select, update
from sqlalchemy.dialects.postgresql import insert as pg_insert
from sqlalchemy.sql.dml import ReturningInsert

from shared.gallery.models import Image, Prompt, Upload
from shared.kept_statements import built_once, given, with_given

_TOUCH_EVERY = timedelta(minutes=5)


def text_sha256(text: str) -> bytes:
    """The identity of a prompt within its tenant."""
    return hashlib.sha256(text.encode("utf-8")).digest()


def find_prompt(tenant_id: UUID, text: str) -> Select[UUID]:
    """The id of a prompt that is already known, embedding and all."""
    return with_given(_find_prompt(), tenant=tenant_id, sha256=text_sha256(text))


@built_once()
def _find_prompt() -> Select[UUID]:
    """Built once: every job asks, and building takes longer than asking."""
    return select(Prompt.id).where(
        Prompt.tenant_id == given("tenant", Prompt.tenant_id.type),
        Prompt.text_sha256 == given("sha256", Prompt.text_sha256.type),
    )


def ensure_prompt(
    tenant_id: UUID, text: str, embedding: Sequence[float], embedding_model: str
) -> ReturningInsert[UUID]:
    """Insert the prompt or find the one that is there; returns its id either way."""
    statement = pg_insert(Prompt).values(
        tenant_id=tenant_id,
        text=text,
        text_sha256=text_sha256(text),
        embedding=embedding,
        embedding_model=embedding_model,
    )
    return statement.on_conflict_do_update(
        index_elements=[Prompt.tenant_id, Prompt.text_sha256],
        # A no-op update, so that RETURNING answers for the existing row too. Not of a key column:
        # that would lock the row against every commit whose images name this prompt.
        set_={"embedding_model": Prompt.embedding_model},
    ).returning(Prompt.id)


def list_images_of_jobs(job_ids: Iterable[UUID]) -> Select[Image]:
    """Images of these jobs, in the order of their seeds. The jobs were read with their tenant."""
    return select(Image).where(Image.job_id.in_(job_ids)).order_by(Image.job_id, Image.index)


def get_image(tenant_id: UUID, image_id: UUID) -> Select[Image]:
    """A tenant's image."""
    return select(Image).where(Image.tenant_id == tenant_id, Image.id == image_id)


def find_image_by_file(tenant_id: UUID, sha256: str) -> Select[Image]:
    """The tenant's images with exactly these bytes, oldest first: those after it reproduce it."""
    return (
        select(Image).where(Image.tenant_id == tenant_id, Image.sha256 == sha256).order_by(Image.id)
    )


def find_upload_by_file(tenant_id: UUID, sha256: str) -> Select[Upload]:
    """The tenant's uploads with exactly these bytes, newest first."""
    return (
        select(Upload)
        .where(Upload.tenant_id == tenant_id, Upload.sha256 == sha256)
        .order_by(Upload.id.desc())
    )


def insert_upload(upload: dict[str, Any]) -> ReturningInsert[Upload]:
    """A client's cleaned picture."""
    return insert(Upload).values(**upload).returning(Upload)


def get_upload(tenant_id: UUID, upload_id: UUID) -> Select[Upload]:
    """A tenant's upload."""
    return select(Upload).where(Upload.tenant_id == tenant_id, Upload.id == upload_id)


def list_uploads(tenant_id: UUID, limit: int, before: UUID | None) -> Select[Upload]:
    """A tenant's uploads, newest first, starting after the one with the id `before`."""
    statement = select(Upload).where(Upload.tenant_id == tenant_id)
    if before is not None:
        statement = statement.where(Upload.id < before)
    return statement.order_by(Upload.id.desc()).limit(limit)


def touch_uploads(tenant_id: UUID, upload_ids: Iterable[UUID]) -> Update:
    """A submission wants them: retention leaves them alone until its job is on record."""
    now = func.statement_timestamp()
    return (
        update(Upload)
        .where(
            Upload.tenant_id == tenant_id,
            Upload.id.in_(upload_ids),
            or_(Upload.used_at.is_(None), Upload.used_at < now - _TOUCH_EVERY),
        )
        .values(used_at=now)
    )
