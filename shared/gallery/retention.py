"""SQL of retention: which images are due, which objects an image still names, what to forget.

Objects go before rows: what fails between the two is found again in the next round.
"""

from collections.abc import Sequence
from datetime import timedelta
from uuid import UUID

from sqlalchemy import ColumnElement, Delete, Select, delete, func, or_, select

from shared.gallery.models import Image, Prompt, Upload
from shared.jobs.models import Job


def list_old_images(
    older_than: timedelta, before: UUID, limit: int
) -> Select[UUID, UUID, str, str]:
    """(id, prompt, key, thumbnail's key) of images older than `older_than`, oldest first.

    `before` is an id made at that time or later; the ids' own order serves as the index.
    """
    return (
        select(Image.id, Image.prompt_id, Image.s3_key, Image.thumbnail_s3_key)
        .where(Image.id < before, Image.created_at < func.statement_timestamp() - older_than)
        .order_by(Image.id)
        .limit(limit)
    )


def delete_images(image_ids: Sequence[UUID]) -> Delete:
    """Forget images whose objects are gone."""
    return delete(Image).where(Image.id.in_(image_ids))


def list_prompts_of_jobs(job_ids: Sequence[UUID]) -> Select[UUID]:
    """The prompts that these jobs' images name."""
    return select(Image.prompt_id).where(Image.job_id.in_(job_ids)).distinct()


def lock_prompts(prompt_ids: Sequence[UUID]) -> Select[UUID]:
    """Keep others from naming or deleting these prompts; the next statement sees what they did."""
    return select(Prompt.id).where(Prompt.id.in_(prompt_ids)).order_by(Prompt.id).with_for_update()


def delete_unused_prompts(prompt_ids: Sequence[UUID]) -> Delete:
    """Forget those of the prompts that no image names any more."""
    used = select(Image.id).where(Image.prompt_id == Prompt.id).exists()
    return delete(Prompt).where(Prompt.id.in_(prompt_ids), ~used)


def list_keys_of_attempt(job_id: UUID, attempt: int) -> Select[str, str]:
    """(key, thumbnail's key) of the images that this attempt committed."""
    return select(Image.s3_key, Image.thumbnail_s3_key).where(
        Image.job_id == job_id, Image.attempt == attempt
    )


def list_unused_uploads(older_than: timedelta, limit: int) -> Select[UUID, str]:
    """(id, key) of uploads that no job starts from, and that nobody has asked for so long."""
    return select(Upload.id, Upload.s3_key).where(*_is_unused(older_than)).limit(limit)


def delete_unused_uploads(upload_ids: Sequence[UUID], older_than: timedelta) -> Delete:
    """Forget those that are unused still."""
    return delete(Upload).where(Upload.id.in_(upload_ids), *_is_unused(older_than))


def _is_unused(older_than: timedelta) -> tuple[ColumnElement[bool], ...]:
    before = func.statement_timestamp() - older_than
    named = select(Job.id).where(
        Job.init_image.is_not(None), Job.init_image["s3_key"].astext == Upload.s3_key
    )
    return (
        Upload.created_at < before,
        or_(Upload.used_at.is_(None), Upload.used_at < before),
        ~named.exists(),
    )
