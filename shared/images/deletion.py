"""SQL of deletion: rows go at once; their objects are named in the same transaction.

So nothing is left that nobody knows of: what S3 did not take then is swept later.
"""

from collections.abc import Sequence
from datetime import timedelta
from uuid import UUID

from sqlalchemy import (
    ColumnElement,
    Delete,
    Select,
    Text,
    Update,
    Uuid,
    and_,
    cast,
    delete,
    exists,
    func,
    literal,
    literal_column,
    or_,
    select,
    true,
    update,
)
from sqlalchemy.dialects.postgresql import ARRAY, Insert, array
from sqlalchemy.dialects.postgresql import insert as pg_insert
from sqlalchemy.orm import aliased
from sqlalchemy.sql.dml import ReturningDelete, ReturningInsert, ReturningUpdate

from shared.images.models import DeletedImage, Image, PendingDeletion, Prompt, Session, Upload
from shared.images.queries import delete_unused_prompts, session_lock
from shared.images.queries import lock_prompts as lock_all_prompts
from shared.jobs.models import HAS_OPTION_IMAGES, MASK_KEY, OPTION_IMAGES, Job


def star(tenant_id: UUID, image_id: UUID, starred: bool) -> ReturningUpdate[Image]:
    """Star an image, or take its star away; a second time changes nothing."""
    return (
        update(Image)
        .where(Image.tenant_id == tenant_id, Image.id == image_id)
        .values(starred=starred)
        .returning(Image)
    )


RESTORABLE = timedelta(seconds=60)
"""For how long a deleted image can be restored."""

_PURGED = RESTORABLE + timedelta(seconds=5)
"""Longer, so that none is purged while it is being restored."""

_COLUMNS = [column.name for column in Image.__table__.columns if column.computed is None]


def delete_image(tenant_id: UUID, image_id: UUID) -> ReturningInsert[UUID, str, UUID]:
    """(prompt, key, job) of the image that was there; it is put aside, see `restore_image`."""
    again = aliased(Image)
    reproductions = select(again.id).where(again.reproduces == Image.id).correlate(Image)
    removed = (
        delete(Image)
        .where(Image.tenant_id == tenant_id, Image.id == image_id)
        .returning(
            *(Image.id, Image.tenant_id, Image.job_id, Image.prompt_id, Image.s3_key),
            func.to_jsonb(literal_column("images")).label("row"),
            func.array(reproductions.scalar_subquery()).label("reproductions"),
        )
        .cte("removed")
    )
    names = [column.name for column in removed.columns]
    put_aside = pg_insert(DeletedImage).from_select(names, select(removed))
    return put_aside.returning(DeletedImage.prompt_id, DeletedImage.s3_key, DeletedImage.job_id)


def find_deleted_image(tenant_id: UUID, image_id: UUID) -> Select[DeletedImage]:
    """The image, if it can still be restored; locked, so that it is restored once."""
    return (
        select(DeletedImage)
        .where(
            DeletedImage.tenant_id == tenant_id,
            DeletedImage.id == image_id,
            DeletedImage.deleted_at > func.statement_timestamp() - RESTORABLE,
        )
        .with_for_update()
    )


def restore_image(image_id: UUID) -> Insert:
    """Insert the row that `find_deleted_image` locked."""
    row = func.jsonb_populate_record(literal_column("NULL::images"), DeletedImage.row)
    fields = row.table_valued(*_COLUMNS, name="fields")
    original = select(Image.id).where(Image.id == cast(fields.c.reproduces, Uuid))
    values = [
        original.scalar_subquery() if name == "reproduces" else fields.c[name] for name in _COLUMNS
    ]
    found = select(*values).select_from(DeletedImage).join(fields, true())
    return pg_insert(Image).from_select(_COLUMNS, found.where(DeletedImage.id == image_id))


def relate_reproductions(tenant_id: UUID, image_id: UUID, reproductions: Sequence[UUID]) -> Update:
    """Let the images that reproduced a restored one be reproductions again."""
    return (
        update(Image)
        .where(Image.tenant_id == tenant_id, Image.id.in_(reproductions))
        .values(reproduces=image_id)
    )


def forget_deleted_images(image_ids: Sequence[UUID]) -> Delete:
    """They are restored, or gone for good."""
    return delete(DeletedImage).where(DeletedImage.id.in_(image_ids))


def list_purgeable_images(limit: int) -> Select[UUID, UUID, str]:
    """(id, prompt, key) of deleted images that can no longer be restored; of all tenants."""
    return (
        select(DeletedImage.id, DeletedImage.prompt_id, DeletedImage.s3_key)
        .where(DeletedImage.deleted_at < func.statement_timestamp() - _PURGED)
        .order_by(DeletedImage.deleted_at)
        .limit(limit)
    )


def delete_images_of_jobs(tenant_id: UUID, job_ids: Sequence[UUID]) -> ReturningDelete[UUID, str]:
    """(prompt, key) of the images of these jobs."""
    return (
        delete(Image)
        .where(Image.tenant_id == tenant_id, Image.job_id.in_(job_ids))
        .returning(Image.prompt_id, Image.s3_key)
    )


def forget_images_of_jobs(tenant_id: UUID, job_ids: Sequence[UUID]) -> ReturningDelete[UUID]:
    """The prompts of these jobs' deleted images, which nobody can restore any more."""
    chosen = DeletedImage.tenant_id == tenant_id, DeletedImage.job_id.in_(job_ids)
    return delete(DeletedImage).where(*chosen).returning(DeletedImage.prompt_id)


def delete_upload(tenant_id: UUID, upload_id: UUID) -> ReturningDelete[str]:
    """The key of the upload that was there."""
    return (
        delete(Upload)
        .where(Upload.tenant_id == tenant_id, Upload.id == upload_id)
        .returning(Upload.s3_key)
    )


def has_unfinished_job_from(tenant_id: UUID, s3_keys: Sequence[str]) -> Select[bool]:
    """Whether a job that names one of these images waits or runs."""
    listed = OPTION_IMAGES.has_any(cast(array(s3_keys), ARRAY(Text)))
    return _has_unfinished_job(tenant_id, s3_keys, listed)


def has_unfinished_job_from_session(tenant_id: UUID, session_id: str) -> Select[bool]:
    """Whether a job that names an image of the session waits or runs."""
    images = select(Image.s3_key).where(
        Image.tenant_id == tenant_id, Image.session_id == session_id
    )
    listed = images.where(OPTION_IMAGES.contains(func.to_jsonb(Image.s3_key)))
    return _has_unfinished_job(tenant_id, images, listed.exists())


def _has_unfinished_job(
    tenant_id: UUID, s3_keys: Sequence[str] | Select[str], listed: ColumnElement[bool]
) -> Select[bool]:
    """`listed`: whether the images of a job's options are among them."""
    named = (
        Job.init_image["s3_key"].astext.in_(s3_keys),
        MASK_KEY.in_(s3_keys),
        and_(HAS_OPTION_IMAGES, listed),
    )
    unfinished = Job.tenant_id == tenant_id, Job.finished_at.is_(None)
    return select(exists().where(*unfinished, or_(*named)))


def lock_prompts(tenant_id: UUID, prompt_ids: Sequence[UUID]) -> Select[UUID]:
    """Keep commits from naming these prompts; the next statement sees what they name already."""
    return lock_all_prompts(prompt_ids).where(Prompt.tenant_id == tenant_id)


def delete_prompts(tenant_id: UUID, prompt_ids: Sequence[UUID]) -> ReturningDelete[UUID]:
    """Those of the prompts that no image names any more, vectors and all."""
    unused = delete_unused_prompts(prompt_ids).where(Prompt.tenant_id == tenant_id)
    return unused.returning(Prompt.id)


def count_deleted(tenant_id: UUID, prompt_id: UUID, images: int) -> Update:
    """Count a prompt's deleted images: recommendations heed it."""
    return (
        update(Prompt)
        .where(Prompt.tenant_id == tenant_id, Prompt.id == prompt_id)
        .values(deleted_images=Prompt.deleted_images + images)
    )


def lock_job(tenant_id: UUID, job_id: UUID) -> Select[Job]:
    """The job, so that nobody changes it until the transaction ends."""
    return (
        select(Job)
        .where(Job.tenant_id == tenant_id, Job.id == job_id)
        .with_for_update(key_share=True)
    )


def has_unfinished_job(tenant_id: UUID, session_id: str) -> Select[bool]:
    """Whether a job of the session waits or runs."""
    return select(
        exists().where(
            Job.tenant_id == tenant_id, Job.session_id == session_id, Job.finished_at.is_(None)
        )
    )


def list_jobs(tenant_id: UUID, session_id: str, limit: int) -> Select[UUID, int]:
    """(id, attempts) of ended jobs of the session, locked against being retried."""
    return (
        select(Job.id, Job.attempt)
        .where(
            Job.tenant_id == tenant_id, Job.session_id == session_id, Job.finished_at.is_not(None)
        )
        .order_by(Job.id)
        .limit(limit)
        .with_for_update(key_share=True)
    )


def keep_out_of_session(tenant_id: UUID, session_id: str) -> Select[None]:
    """Wait for submissions into the session, and let none begin until the transaction ends."""
    number = session_lock(literal(tenant_id, Uuid), literal(session_id, Text))
    return select(func.pg_advisory_xact_lock(number))


def lock_session(tenant_id: UUID, session_id: str) -> Select[str]:
    """The session, against batches that are taken in: they hold its row."""
    return (
        select(Session.id)
        .where(Session.tenant_id == tenant_id, Session.id == session_id)
        .with_for_update()
    )


def delete_session(tenant_id: UUID, session_id: str) -> Delete:
    """The session's own row, when nothing is in it."""
    return delete(Session).where(Session.tenant_id == tenant_id, Session.id == session_id)


def schedule_deletions(
    tenant_id: UUID, prefixes: Sequence[str], after: timedelta = timedelta(0)
) -> Insert:
    """Name what S3 is to delete, now or later."""
    at = func.statement_timestamp() + after
    rows = [{"tenant_id": tenant_id, "prefix": prefix, "created_at": at} for prefix in prefixes]
    return pg_insert(PendingDeletion).values(rows).on_conflict_do_nothing()


def delete_pending_deletions(tenant_id: UUID, prefixes: Sequence[str]) -> Delete:
    """S3 has deleted them, or is not to."""
    return delete(PendingDeletion).where(
        PendingDeletion.tenant_id == tenant_id, PendingDeletion.prefix.in_(prefixes)
    )


def list_pending_deletions(older_than: timedelta, limit: int) -> Select[UUID, str]:
    """(tenant, prefix) of objects that should have gone by now; of all tenants."""
    return (
        select(PendingDeletion.tenant_id, PendingDeletion.prefix)
        .where(PendingDeletion.created_at < func.statement_timestamp() - older_than)
        .order_by(PendingDeletion.created_at)
        .limit(limit)
    )
