"""SQL of sessions, prompts, images and uploads. Every statement takes the tenant."""

import hashlib
from collections.abc import Iterable, Sequence
from functools import cache
from typing import Any
from uuid import UUID

from sqlalchemy import Select, insert, select
from sqlalchemy.dialects.postgresql import insert as pg_insert
from sqlalchemy.sql.dml import ReturningInsert

from shared.gallery.models import Image, Prompt, Upload
from shared.parameters import given, with_given


def text_sha256(text: str) -> bytes:
    """The identity of a prompt within its tenant."""
    return hashlib.sha256(text.encode("utf-8")).digest()


def find_prompt(tenant_id: UUID, text: str, *, locked: bool = False) -> Select[UUID]:
    """The id of a prompt that is already known, embedding and all.

    `locked`: it cannot be removed before the transaction ends.
    """
    return with_given(_find_prompt(locked), tenant=tenant_id, sha256=text_sha256(text))


@cache
def _find_prompt(locked: bool) -> Select[UUID]:
    """Built once: every job's commit asks, and building takes longer than asking."""
    statement = select(Prompt.id).where(
        Prompt.tenant_id == given("tenant", Prompt.tenant_id.type),
        Prompt.text_sha256 == given("sha256", Prompt.text_sha256.type),
    )
    return statement.with_for_update(read=True, key_share=True) if locked else statement


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


def insert_images(images: Sequence[dict[str, Any]]) -> Select[UUID]:
    """All of a job's images at once, which have the same columns; gives their ids."""
    values = {
        f"{number}_{name}": value
        for number, image in enumerate(images)
        for name, value in image.items()
    }
    return with_given(_insert_images(len(images), tuple(images[0])), **values)


@cache
def _insert_images(count: int, columns: tuple[str, ...]) -> Select[UUID]:
    """Built once, as `_find_prompt` is; a SELECT around it, since INSERTs take no parameters."""
    rows = [
        {name: given(f"{number}_{name}", getattr(Image, name).type) for name in columns}
        for number in range(count)
    ]
    # SQLAlchemy compiles an INSERT of several rows anew each time, and that of one row once.
    insertion = insert(Image).values(rows if count > 1 else rows[0])
    inserted = insertion.returning(Image.id).cte("inserted")
    return select(inserted.c.id)


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
