"""All that is kept of one tenant: as a ZIP file, or deleted for good."""

import json
import os
import secrets
import time
import zipfile
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import UUID

import redis
from psycopg.errors import LockNotAvailable
from sqlalchemy import (
    ColumnElement,
    FromClause,
    Select,
    Table,
    delete,
    func,
    literal_column,
    select,
)
from sqlalchemy.exc import OperationalError
from sqlalchemy.orm import Session

from deploy.tenants import database_session
from migrations.metadata import target_metadata
from shared.batches.models import Batch, BatchFile
from shared.core import tenants
from shared.core.broker import RATE_LIMIT_PREFIX, batch_key, events_key
from shared.core.redis_clients import open_redis
from shared.core.settings import Settings, darkroom_version
from shared.core.storage import ObjectMissing, Storage, job_folder
from shared.core.tenants import ApiKey, Tenant
from shared.images.models import DeletedImage, Image, PendingDeletion, Upload
from shared.jobs.models import Job, JobAttempt, UploadedLora
from shared.jobs.queries import client_requests, periodic
from shared.jobs.state import AttemptOutcome

_AT_ONCE = 1000
_KEYS_END_WITHIN = timedelta(seconds=6)
"""API processes notice a revoked key within five seconds."""
_SECRET = {"api_keys": ("secret_hash",)}
"""Columns that are nobody's data."""
_LEFT_OUT = ("webhook_secrets", "pending_deletions")
"""Whoever reads the first can sign."""


class NoSuchTenant(Exception):
    """There is no tenant of this name."""


class DeletionTimedOut(Exception):
    """Jobs or requests did not end in time."""


# --- Export -----------------------------------------------------------------------------------


def export_tenant(settings: Settings, name: str, target: Path) -> dict[str, Any]:
    """Write everything that is kept of a tenant into a new ZIP file; returns what it holds.

    `rows/TABLE.jsonl` has the rows of one moment, `objects/KEY` the files that they name. Secrets
    are left out. A file that was deleted meanwhile is listed in `export.json`.

    Raises:
        NoSuchTenant: there is none.
        FileExistsError: there is such a file.
        StorageUnavailable: S3 cannot be read.
    """
    begun = datetime.now(UTC)
    partial = target.with_name(f"{target.name}.{secrets.token_hex(4)}.partial")
    if target.exists():
        raise FileExistsError(f"{target} is there already")
    storage = Storage(settings)
    try:
        # For its owner alone, and through nobody's link.
        flags = os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_RDWR
        number = os.open(partial, flags, 0o600)
        with os.fdopen(number, "w+b") as file, zipfile.ZipFile(file, "w") as archive:
            with _session(settings, isolation_level="REPEATABLE READ") as session:
                tenant_id = _find(session, name)
                rows = {
                    table.name: _write_rows(archive, session, table, statement)
                    for table, statement in _rows_of(tenant_id)
                }
                keys = sorted(set(_object_keys(session, tenant_id)))
            missing = [key for key in keys if not _write_object(archive, storage, key)]
            facts = {
                "tenant": name,
                "begun_at": begun.isoformat(timespec="seconds"),
                "darkroom": darkroom_version(),
                "rows": rows,
                "objects": len(keys) - len(missing),
                "missing_objects": missing,
            }
            archive.writestr("export.json", json.dumps(facts, indent=2))
        partial.replace(target)
    finally:
        storage.close()
        partial.unlink(missing_ok=True)
    return facts | {"missing_objects": len(missing), "file": str(target)}


def _rows_of(tenant_id: UUID) -> Iterator[tuple[Table, Select[Any]]]:
    """Each table with rows of tenants, and the query that reads this tenant's as JSON."""
    for table in target_metadata.sorted_tables:
        if table.name in _LEFT_OUT:
            continue
        row: ColumnElement[Any] = literal_column(f'to_jsonb("{table.name}")')
        for column in _SECRET.get(table.name, ()):
            row = row.op("-")(column)
        source, tenant = _owned(table)
        if tenant is not None:
            yield table, select(row).select_from(source).where(tenant == tenant_id)


def _owned(table: Table) -> tuple[FromClause, Any]:
    """A table joined with what names its rows' owner, and that column; None: nobody owns them."""
    if table.name == Tenant.__tablename__:
        return table, table.c.id
    if "tenant_id" in table.c:
        return table, table.c.tenant_id
    for key in table.foreign_keys:
        owner = key.column.table
        if "tenant_id" in owner.c:
            return table.join(owner, key.column == key.parent), owner.c.tenant_id
    return table, None


def _write_rows(
    archive: zipfile.ZipFile, session: Session, table: Table, statement: Select[Any]
) -> int:
    count = 0
    entry = zipfile.ZipInfo(f"rows/{table.name}.jsonl", time.gmtime()[:6])
    entry.compress_type = zipfile.ZIP_DEFLATED
    with archive.open(entry, "w", force_zip64=True) as file:
        options = {"yield_per": _AT_ONCE}
        for row in session.scalars(statement, execution_options=options):
            file.write(json.dumps(row, ensure_ascii=False).encode() + b"\n")
            count += 1
    return count


def _write_object(archive: zipfile.ZipFile, storage: Storage, key: str) -> bool:
    """Whether it was there."""
    entry = zipfile.ZipInfo(f"objects/{key}", time.gmtime()[:6])
    try:
        storage.get(key, range(1))  # an entry that was begun could not be taken back
        with archive.open(entry, "w", force_zip64=True) as file:
            storage.read_into(key, file)  # type: ignore[arg-type]  # it is written to only
    except ObjectMissing:
        return False
    return True


# --- Deletion ---------------------------------------------------------------------------------


def delete_tenant(settings: Settings, name: str, wait: timedelta) -> dict[str, Any]:
    """Delete a tenant and all its data; returns how much. Safe to repeat after a failure.

    Its keys end first, its jobs are canceled, and those that run get `wait` to stop. Objects go
    before the rows that name them. Nothing that a late request adds is missed: it needs the
    tenant's row, which is locked before the last check.

    Raises:
        NoSuchTenant: there is none.
        DeletionTimedOut: a job or a request still runs.
        StorageUnavailable, redis.RedisError: servers are unavailable.
    """
    deadline = time.monotonic() + wait.total_seconds()
    gone_jobs = gone_objects = 0
    is_gone = False
    storage, client = Storage(settings), open_redis(settings)
    try:
        with _session(settings) as session:
            tenant_id = _find(session, name)
        _end_keys(settings, tenant_id)
        while not is_gone:
            _end_jobs(settings, tenant_id, deadline)
            while jobs := _ended_jobs(settings, tenant_id):
                gone_objects += _delete_objects_of(settings, storage, jobs)
                client.delete(*map(events_key, jobs))
                with _session(settings) as session:
                    session.execute(periodic.delete_ended(jobs))
                gone_jobs += len(jobs)
            with _session(settings) as session:
                _lock(session, tenant_id, deadline)
                is_gone = not session.scalars(_count_jobs(tenant_id)).one()
                if is_gone:
                    gone_objects += _delete_rest(session, storage, client, tenant_id)
    finally:
        storage.close()
        client.close()
    return {"tenant": name, "jobs": gone_jobs, "objects": gone_objects}


def _end_keys(settings: Settings, tenant_id: UUID) -> None:
    """Revoke them, and wait until API processes have noticed, also for those revoked before."""
    with _session(settings) as session:
        mine = ApiKey.tenant_id == tenant_id
        for key_id in session.scalars(select(ApiKey.id).where(mine, ApiKey.revoked_at.is_(None))):
            session.execute(tenants.revoke_key(tenant_id, key_id))
        since = select(func.age(func.now(), func.max(ApiKey.revoked_at))).where(mine)
        ended_for: timedelta | None = session.scalars(since).one()
    if ended_for is not None:
        time.sleep(max(0.0, (_KEYS_END_WITHIN - ended_for).total_seconds()))


def _end_jobs(settings: Settings, tenant_id: UUID, deadline: float) -> None:
    """Cancel all and wait for those that run.

    Raises:
        DeletionTimedOut: one did not end by the deadline.
    """
    while True:
        with _session(settings) as session:
            session.execute(client_requests.cancel_tenant(tenant_id))
            unfinished = _count_jobs(tenant_id).where(Job.finished_at.is_(None))
            running = session.scalars(unfinished).one()
        if not running:
            return
        if time.monotonic() > deadline:
            raise DeletionTimedOut(f"{running} jobs of the tenant still run; try again.")
        time.sleep(1)


def _count_jobs(tenant_id: UUID) -> Select[int]:
    return select(func.count()).select_from(Job).where(Job.tenant_id == tenant_id)


def _ended_jobs(settings: Settings, tenant_id: UUID) -> Sequence[UUID]:
    with _session(settings) as session:
        ended = Job.tenant_id == tenant_id, Job.finished_at.is_not(None)
        return session.scalars(select(Job.id).where(*ended).limit(_AT_ONCE)).all()


def _lock(session: Session, tenant_id: UUID, deadline: float) -> None:
    """Wait for requests that have added rows; further ones wait for this transaction, and fail.

    Raises:
        DeletionTimedOut: one did not end by the deadline, or in five seconds.
    """
    seconds = max(5.0, deadline - time.monotonic())
    session.execute(select(func.set_config("lock_timeout", f"{seconds * 1000:.0f}ms", True)))
    try:
        session.execute(select(Tenant.id).where(Tenant.id == tenant_id).with_for_update())
    except OperationalError as error:
        if isinstance(error.orig, LockNotAvailable):
            raise DeletionTimedOut("A request of the tenant still runs; try again.") from None
        raise


def _delete_rest(session: Session, storage: Storage, client: "redis.Redis", tenant_id: UUID) -> int:
    """Delete the tenant and what belongs to no job; returns how many objects that was."""
    keys = set(_object_keys(session, tenant_id))
    prefixes = select(PendingDeletion.prefix).where(PendingDeletion.tenant_id == tenant_id)
    for prefix in session.scalars(prefixes):
        keys.update(storage.list_keys(prefix))
    objects = storage.delete(keys)
    _forget_in_redis(client, session, tenant_id)
    session.execute(delete(Tenant).where(Tenant.id == tenant_id))
    return objects


def _delete_objects_of(settings: Settings, storage: Storage, jobs: Sequence[UUID]) -> int:
    """Delete these jobs' images and what uncommitted attempts left; returns how many."""
    unsuccessful = JobAttempt.outcome.is_distinct_from(AttemptOutcome.SUCCEEDED)
    with _session(settings) as session:
        keys = set(_keys_of_images(session, Image.job_id.in_(jobs)))
        folders = session.execute(
            select(Job.session_id, Job.id)
            .join(JobAttempt, JobAttempt.job_id == Job.id)
            .where(Job.id.in_(jobs), unsuccessful)
            .distinct()
        ).all()
    for session_id, job_id in folders:
        keys.update(storage.list_keys(job_folder(session_id, job_id)))
    return storage.delete(keys)


def _forget_in_redis(client: "redis.Redis", session: Session, tenant_id: UUID) -> None:
    batches = session.scalars(select(Batch.id).where(Batch.tenant_id == tenant_id)).all()
    key_ids = session.scalars(select(ApiKey.id).where(ApiKey.tenant_id == tenant_id)).all()
    keys = [batch_key(batch_id) for batch_id in batches]
    for key in client.scan_iter(match=f"*{RATE_LIMIT_PREFIX}*", count=_AT_ONCE):
        name = key.decode("utf-8", "replace")
        if any(key_id in name for key_id in key_ids):
            keys.append(name)
    if keys:
        client.delete(*keys)


# --- What both need ---------------------------------------------------------------------------


def _object_keys(session: Session, tenant_id: UUID) -> Iterator[str]:
    """The key of each object that a row of the tenant names."""
    yield from _keys_of_images(session, Image.tenant_id == tenant_id)
    aside = select(DeletedImage.s3_key, DeletedImage.row["thumbnail_s3_key"].astext)
    for row in session.execute(aside.where(DeletedImage.tenant_id == tenant_id)):
        yield from row
    for table in (Upload, BatchFile, UploadedLora):
        yield from session.scalars(select(table.s3_key).where(table.tenant_id == tenant_id))


def _keys_of_images(session: Session, which: ColumnElement[bool]) -> Iterator[str]:
    for row in session.execute(select(Image.s3_key, Image.thumbnail_s3_key).where(which)):
        yield from row


def _find(session: Session, name: str) -> UUID:
    tenant_id = session.scalars(select(Tenant.id).where(Tenant.name == name)).one_or_none()
    if tenant_id is None:
        raise NoSuchTenant(f"There is no tenant {name!r}.")
    return tenant_id


def _session(settings: Settings, **options: Any) -> AbstractContextManager[Session]:
    return database_session(settings.database_url.get_secret_value(), **options)
