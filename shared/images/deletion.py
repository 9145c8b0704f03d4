"""SQL of throwing away: rows go at once; their objects are named in the same transaction.

So nothing is left that nobody knows of: what S3 did not take then is swept later.
"""

from collections.abc import Sequence
from datetime import timedelta
from uuid import UUID

from sqlalchemy import (
    Delete,
    Select,
    Text,
    Update,
    Uuid,
    delete,
    exists,
    func,
    literal,
    select,
    update,
)
from sqlalchemy.dialects.postgresql import Insert
from sqlalchemy.dialects.postgresql import insert as pg_insert
from sqlalchemy.sql.dml import ReturningDelete, ReturningUpdate

from shared.images.models import DoomedObject, Image, Prompt, Session, Upload
from shared.jobs.models import Job
from shared.jobs.queries.accept import session_lock


def star(tenant_id: UUID, image_id: UUID, starred: bool) -> ReturningUpdate[Image]:
    """Star an image, or take its star away; a second time changes nothing."""
    return (
        update(Image)
        .where(Image.tenant_id == tenant_id, Image.id == image_id)
        .values(starred=starred)
        .returning(Image)
    )


def delete_image(tenant_id: UUID, image_id: UUID) -> ReturningDelete[UUID, str]:
    """(prompt, key) of the image that was there."""
    return (
        delete(Image)
        .where(Image.tenant_id == tenant_id, Image.id == image_id)
        .returning(Image.prompt_id, Image.s3_key)
    )


def delete_images_of_jobs(tenant_id: UUID, job_ids: Sequence[UUID]) -> ReturningDelete[UUID, str]:
    """(prompt, key) of the images of these jobs."""
    return (
        delete(Image)
        .where(Image.tenant_id == tenant_id, Image.job_id.in_(job_ids))
        .returning(Image.prompt_id, Image.s3_key)
    )


def delete_upload(tenant_id: UUID, upload_id: UUID) -> ReturningDelete[str]:
    """The key of the upload that was there."""
    return (
        delete(Upload)
        .where(Upload.tenant_id == tenant_id, Upload.id == upload_id)
        .returning(Upload.s3_key)
    )


def has_unfinished_job_from(tenant_id: UUID, s3_keys: Sequence[str]) -> Select[bool]:
    """Whether a job that starts from one of these pictures waits or runs."""
    return select(
        exists().where(
            Job.tenant_id == tenant_id,
            Job.finished_at.is_(None),
            Job.init_image["s3_key"].astext.in_(s3_keys),
        )
    )


def has_unfinished_job_from_session(tenant_id: UUID, session_id: str) -> Select[bool]:
    """Whether a job that starts from a picture of the session waits or runs."""
    pictures = select(Image.s3_key).where(
        Image.tenant_id == tenant_id, Image.session_id == session_id
    )
    return select(
        exists().where(
            Job.tenant_id == tenant_id,
            Job.finished_at.is_(None),
            Job.init_image.is_not(None),
            Job.init_image["s3_key"].astext.in_(pictures),
        )
    )


def lock_prompts(tenant_id: UUID, prompt_ids: Sequence[UUID]) -> Select[UUID]:
    """Keep commits from naming these prompts; the next statement sees what they name already."""
    return (
        select(Prompt.id)
        .where(Prompt.tenant_id == tenant_id, Prompt.id.in_(prompt_ids))
        .order_by(Prompt.id)
        .with_for_update()
    )


def delete_prompts(tenant_id: UUID, prompt_ids: Sequence[UUID]) -> ReturningDelete[UUID]:
    """Those of the prompts that no image names any more, vectors and all."""
    used = select(Image.id).where(Image.prompt_id == Prompt.id).exists()
    return (
        delete(Prompt)
        .where(Prompt.tenant_id == tenant_id, Prompt.id.in_(prompt_ids), ~used)
        .returning(Prompt.id)
    )


def count_deleted(tenant_id: UUID, prompt_id: UUID, images: int) -> Update:
    """Remember of a prompt that its pictures were thrown away: recommendations heed it."""
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
            Job.tenant_id == tenant_id,
            Job.session_id == session_id,
            Job.finished_at.is_not(None),
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


def doom_objects(tenant_id: UUID, prefixes: Sequence[str]) -> Insert:
    """Name what S3 is to forget."""
    rows = [{"tenant_id": tenant_id, "prefix": prefix} for prefix in prefixes]
    return pg_insert(DoomedObject).values(rows).on_conflict_do_nothing()


def forget_doomed(tenant_id: UUID, prefixes: Sequence[str]) -> Delete:
    """S3 has forgotten them."""
    return delete(DoomedObject).where(
        DoomedObject.tenant_id == tenant_id, DoomedObject.prefix.in_(prefixes)
    )


def list_doomed(older_than: timedelta, limit: int) -> Select[UUID, str]:
    """(tenant, prefix) of objects that should have gone by now; of all tenants."""
    return (
        select(DoomedObject.tenant_id, DoomedObject.prefix)
        .where(DoomedObject.created_at < func.statement_timestamp() - older_than)
        .order_by(DoomedObject.created_at)
        .limit(limit)
    )
