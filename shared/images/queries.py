"""Queries of sessions, prompts, images and uploads; each takes the tenant."""

import hashlib
from collections.abc import Iterable, Sequence
from datetime import datetime, timedelta
from typing import Any, TypeVar
from uuid import UUID

from sqlalchemy import (
    ARRAY,
    BigInteger,
    ColumnElement,
    Delete,
    ScalarSelect,
    Select,
    Text,
    Update,
    Uuid,
    any_,
    bindparam,
    cast,
    delete,
    func,
    insert,
    literal,
    literal_column,
    or_,
    select,
    tuple_,
    update,
)
from sqlalchemy.dialects.postgresql import insert as pg_insert
from sqlalchemy.orm import InstrumentedAttribute
from sqlalchemy.sql.dml import ReturningInsert

from shared.batches.models import BatchFile
from shared.core.database import cached_query, only, param, with_params
from shared.images.models import DeletedImage, Image, Prompt, Session, Upload
from shared.jobs.models import HAS_MASK, HAS_OPTION_IMAGES, MASK_KEY, OPTION_IMAGES, Job

_TOUCH_EVERY = timedelta(minutes=5)
_MANY_SESSIONS = 1_000
_RECENT_JOBS = 10_000
_NO_JOB = literal(UUID(int=0), Uuid)
T = TypeVar("T")


def text_sha256(text: str) -> bytes:
    """The identity of a prompt within its tenant."""
    return hashlib.sha256(text.encode("utf-8")).digest()


def find_prompt(tenant_id: UUID, text: str) -> Select[UUID]:
    """The id of a prompt that is already known, embedding and all."""
    return with_params(_find_prompt(), tenant=tenant_id, sha256=text_sha256(text))


@cached_query()
def _find_prompt() -> Select[UUID]:
    """Built once: every job asks, and building takes longer than asking."""
    return select(Prompt.id).where(
        Prompt.tenant_id == param("tenant", Prompt.tenant_id.type),
        Prompt.text_sha256 == param("sha256", Prompt.text_sha256.type),
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


def get_images(tenant_id: UUID, image_ids: Iterable[UUID]) -> Select[Image]:
    """Those of the images that are the tenant's."""
    return select(Image).where(Image.tenant_id == tenant_id, Image.id.in_(image_ids))


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
    """A client's cleaned image."""
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


def list_start_images(
    tenant_id: UUID, ids: Iterable[UUID], table: type[Upload] | type[Image]
) -> Select[UUID, str, str, int, int]:
    """(id, S3 key, SHA-256, width, height) of those ids that are images of this tenant."""
    return select(table.id, table.s3_key, table.sha256, table.width, table.height).where(
        table.tenant_id == tenant_id, table.id.in_(ids)
    )


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


SessionRow = Select[str, datetime, int, int, datetime | None, datetime, UUID]


def list_sessions(
    tenant_id: UUID,
    limit: int,
    before: tuple[UUID, str] | None,
    *,
    among: Sequence[str] | None = None,
) -> SessionRow:
    """(id, made, images, jobs, latest image, last use, newest job) of sessions, by their newest
    job, newest first; after the session with that newest job and id."""
    statement, newest = _described(tenant_id), _newest_job(tenant_id)
    if before is not None:
        statement = statement.where(tuple_(newest, Session.id) < before)
    if among is not None:
        # As an array from outside: row-level security keeps an index from one that is computed.
        names = bindparam("among", list(among), ARRAY(Text))
        statement = statement.where(Session.id == any_(names))
    return statement.order_by(newest.desc(), Session.id.desc()).limit(limit)


def list_recent_sessions(tenant_id: UUID, before: tuple[UUID, str] | None) -> Select[str]:
    """Sessions of the newest jobs: the jobs of every other session are older."""
    jobs = select(Job.session_id).where(Job.tenant_id == tenant_id)
    if before is not None:
        jobs = jobs.where(Job.id < before[0])
    # A number in the text: of a parameter a prepared statement expects a tenth of all jobs.
    recently: ColumnElement[int] = literal_column(f"{_RECENT_JOBS}")
    newest = jobs.order_by(Job.id.desc()).limit(recently).subquery()
    return select(newest.c.session_id).distinct()


def has_many_sessions(tenant_id: UUID) -> Select[bool]:
    """Whether to ask for the newest job of each takes long."""
    some = select(Session.id).where(Session.tenant_id == tenant_id).limit(_MANY_SESSIONS + 1)
    return select(func.count() > _MANY_SESSIONS).select_from(some.subquery())


def get_session(tenant_id: UUID, session_id: str) -> SessionRow:
    """The same of one."""
    return _described(tenant_id).where(Session.id == session_id)


def find_session(tenant_id: UUID, session_id: str) -> Select[str]:
    """Its id, if it is there: to count what it holds takes as long as it is big."""
    return select(Session.id).where(Session.tenant_id == tenant_id, Session.id == session_id)


def list_images(tenant_id: UUID, session_id: str, limit: int, before: UUID | None) -> Select[Image]:
    """A session's images, newest first, without reproductions."""
    statement = select(Image).where(
        Image.tenant_id == tenant_id, only(Image.session_id, session_id), Image.reproduces.is_(None)
    )
    if before is not None:
        statement = statement.where(Image.id < before)
    return statement.order_by(Image.session_id.desc(), Image.id.desc()).limit(limit)


def _newest_job(tenant_id: UUID) -> ColumnElement[UUID]:
    """The newest job's id. Read, not kept: the row of a session would be written by every job of a
    batch, one after the other."""
    return func.coalesce(_of_newest_job(tenant_id, Job.id), _NO_JOB)


def _last_used(tenant_id: UUID) -> ColumnElement[datetime]:
    """When its newest job was submitted."""
    return func.coalesce(_of_newest_job(tenant_id, Job.created_at), Session.created_at)


def _of_newest_job(tenant_id: UUID, column: InstrumentedAttribute[T]) -> ScalarSelect[T]:
    return (
        select(column)
        .where(Job.tenant_id == tenant_id, only(Job.session_id, Session.id))
        .order_by(Job.session_id.desc(), Job.id.desc())
        .limit(1)
        .scalar_subquery()
    )


def _described(tenant_id: UUID) -> SessionRow:
    images = (
        Image.tenant_id == tenant_id,
        Image.session_id == Session.id,
        Image.reproduces.is_(None),
    )
    jobs = (Job.tenant_id == tenant_id, Job.session_id == Session.id)
    latest = (
        select(Image.created_at)
        .where(
            Image.tenant_id == tenant_id,
            only(Image.session_id, Session.id),
            Image.reproduces.is_(None),
        )
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
        _newest_job(tenant_id),
    ).where(Session.tenant_id == tenant_id)


# Objects go before rows: what fails between the two is found again in the next round.


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
    """Delete images whose objects are gone."""
    return delete(Image).where(Image.id.in_(image_ids))


def list_prompts_of_jobs(job_ids: Sequence[UUID]) -> Select[UUID]:
    """The prompts that these jobs' images name."""
    return select(Image.prompt_id).where(Image.job_id.in_(job_ids)).distinct()


def lock_prompts(prompt_ids: Sequence[UUID]) -> Select[UUID]:
    """Keep others from naming or deleting these prompts; the next statement sees what they did."""
    return select(Prompt.id).where(Prompt.id.in_(prompt_ids)).order_by(Prompt.id).with_for_update()


def delete_unused_prompts(prompt_ids: Sequence[UUID]) -> Delete:
    """Delete those of the prompts that no image names any more."""
    return delete(Prompt).where(Prompt.id.in_(prompt_ids), ~is_prompt_used())


def is_prompt_used() -> ColumnElement[bool]:
    """Whether an image names the prompt, or one that was deleted and may yet be restored."""
    images = select(Image.id).where(Image.prompt_id == Prompt.id)
    deleted = select(DeletedImage.id).where(DeletedImage.prompt_id == Prompt.id)
    return or_(images.exists(), deleted.exists())


def list_keys_of_attempt(job_id: UUID, attempt: int) -> Select[str, str]:
    """(key, thumbnail's key) of the images that this attempt committed."""
    return select(Image.s3_key, Image.thumbnail_s3_key).where(
        Image.job_id == job_id, Image.attempt == attempt
    )


def list_unused_uploads(older_than: timedelta, limit: int) -> Select[UUID, str]:
    """(id, key) of uploads that no job names, unused for that long."""
    return select(Upload.id, Upload.s3_key).where(*_is_unused(older_than)).limit(limit)


def delete_unused_uploads(upload_ids: Sequence[UUID], older_than: timedelta) -> Delete:
    """Delete those that are still unused."""
    return delete(Upload).where(Upload.id.in_(upload_ids), *_is_unused(older_than))


def _is_unused(older_than: timedelta) -> tuple[ColumnElement[bool], ...]:
    before = func.statement_timestamp() - older_than
    named = select(Job.id).where(
        Job.init_image.is_not(None), Job.init_image["s3_key"].astext == Upload.s3_key
    )
    masking = select(Job.id).where(HAS_MASK, Upload.s3_key == MASK_KEY)
    listed = select(Job.id).where(
        HAS_OPTION_IMAGES, OPTION_IMAGES.contains(func.to_jsonb(Upload.s3_key))
    )
    return (
        Upload.created_at < before,
        or_(Upload.used_at.is_(None), Upload.used_at < before),
        ~named.exists(),
        ~masking.exists(),
        ~listed.exists(),
    )


def sum_uploads(key_id: str) -> Select[int]:
    """Bytes of the initial images and batch files that are kept for a key."""
    sums = [
        select(func.coalesce(func.sum(table.bytes), 0))
        .where(table.api_key_id == key_id)
        .scalar_subquery()
        for table in (Upload, BatchFile)
    ]
    return select(cast(sums[0] + sums[1], BigInteger))


def session_lock(tenant: ColumnElement[UUID], name: ColumnElement[str]) -> ColumnElement[int]:
    """The number of a session's advisory lock: shared to add to it, exclusive to delete it."""
    return func.hashtextextended(cast(tenant, Text) + name, 0)
