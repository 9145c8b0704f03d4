"""What the leader deletes: what retention no longer keeps, and orphaned objects."""

import time
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime, timedelta
from typing import TypeVarTuple
from uuid import UUID

from sqlalchemy import Executable, Row
from sqlalchemy.orm import Session, sessionmaker
from sqlalchemy.sql.selectable import TypedReturnsRows

from shared.admin import queries as admin_queries
from shared.batches import queries as batch_queries
from shared.core.ids import earliest_id_at
from shared.core.logging import get_logger
from shared.core.settings import Settings
from shared.core.storage import Storage, job_folder
from shared.images import deletion as image_deletion
from shared.images import queries as image_queries
from shared.jobs.queries import accept as job_acceptance
from shared.jobs.queries import periodic as job_queries
from shared.jobs.queries import quotas as quota_queries
from shared.webhooks import delivery_queries
from worker.maintenance.leader import periodic

log = get_logger(__name__)
Columns = TypeVarTuple("Columns")
BATCH_FILES_KEPT = timedelta(days=7)

DELIVERIES_KEPT = timedelta(days=30)
"""How long events, deliveries and attempts can be looked at."""

_DEVICE_TIME_KEPT = timedelta(days=31)

_DRAINS_KEPT = timedelta(days=7)
"""After this long unread, a drain belongs to a worker name that is gone."""

_ORPHANS_KEPT = timedelta(seconds=30)
"""Whoever deleted the rows removes the objects within seconds, unless it was stopped."""

_MINUTE, _TEN_MINUTES = timedelta(minutes=1), timedelta(minutes=10)

_AT_ONCE = 200
"""Rows of a kind in one round: seconds of S3, not minutes."""

_FILES_AT_ONCE = 100
_ORPHANS_AT_ONCE = 50
_DELIVERIES_AT_ONCE = 5_000

_ORPHAN_SECONDS = 5.0
"""Of one round: the dispatcher's other tasks wait for it."""

_LOOK_BACK = timedelta(days=1)
"""How far back a new leader looks for orphans; its predecessor has swept what is older."""

_LONGEST_WAIT = timedelta(days=14)
"""Attempts at jobs older than this are not looked at; a job's own retention takes their objects."""

_CLOCK_MARGIN = timedelta(days=1)
"""Ids carry the time of their maker's clock. The database's clock decides; this only narrows."""


class Cleanup:
    """The periodic tasks that delete."""

    def __init__(
        self, settings: Settings, database: sessionmaker[Session], storage: Storage
    ) -> None:
        self._settings = settings
        self._database = database
        self._storage = storage
        self._swept_until: datetime | None = None

    @periodic(every=_MINUTE)
    def delete_old_images(self) -> int:
        """Delete images older than `image_retention`; returns how many.

        Raises:
            StorageUnavailable: S3 cannot be reached; nothing was deleted.
        """
        age = self._settings.image_retention
        if age is None:
            return 0
        rows = self._read(image_queries.list_old_images(age, _newest_id_of(age), _AT_ONCE))
        if not rows:
            return 0
        self._storage.delete([key for row in rows for key in (row[2], row[3])])
        with self._database.begin() as session:
            session.execute(image_queries.delete_images([row[0] for row in rows]))
            _delete_unused_prompts(session, {row[1] for row in rows})
        log.info("images_deleted", count=len(rows))
        return len(rows)

    @periodic(every=timedelta(seconds=10))
    def purge_deleted_images(self) -> int:
        """Purge images that were deleted and can no longer be restored; returns how many.

        Raises:
            StorageUnavailable: S3 cannot be reached; the rest goes in a later round.
        """
        rows = self._read(image_deletion.list_purgeable_images(_AT_ONCE))
        if not rows:
            return 0
        deadline = time.monotonic() + _ORPHAN_SECONDS
        purged = []
        try:
            for row in rows:
                # The thumbnail's key begins in the same way.
                self._storage.delete(self._storage.list_keys(row[2].rpartition(".")[0] + "."))
                purged.append(row)
                if time.monotonic() > deadline:
                    break
        finally:
            with self._database.begin() as session:
                session.execute(image_deletion.forget_deleted_images([row[0] for row in purged]))
                _delete_unused_prompts(session, {row[1] for row in purged})
        log.info("deleted_images_purged", count=len(purged))
        return len(purged)

    @periodic(every=_MINUTE)
    def delete_old_jobs(self) -> int:
        """Delete jobs that ended longer ago than `job_retention`; returns how many.

        Raises:
            StorageUnavailable: S3 cannot be reached; the rest goes in a later round.
        """
        age = self._settings.job_retention
        if age is None:
            return 0
        rows = self._read(job_queries.list_ended(age, _newest_id_of(age), _AT_ONCE))
        if not rows:
            return 0
        deadline = time.monotonic() + _ORPHAN_SECONDS
        ids: list[UUID] = []
        try:
            for job_id, session_id in rows:
                self._storage.delete(self._storage.list_keys(job_folder(session_id, job_id)))
                ids.append(job_id)
                if time.monotonic() > deadline:
                    break
        finally:
            with self._database.begin() as session:
                prompts = session.scalars(image_queries.list_prompts_of_jobs(ids)).all()
                session.execute(job_queries.delete_ended(ids))
                _delete_unused_prompts(session, prompts)
        log.info("jobs_deleted", count=len(ids))
        return len(ids)

    @periodic(every=_TEN_MINUTES)
    def delete_unused_uploads(self) -> int:
        """Delete uploads unused for `upload_retention`; returns how many.

        Raises:
            StorageUnavailable: S3 cannot be reached; nothing was deleted.
        """
        age = self._settings.upload_retention
        if age is None:
            return 0
        rows = self._read(image_queries.list_unused_uploads(age, _AT_ONCE))
        if not rows:
            return 0
        self._storage.delete([key for _, key in rows])
        self._execute(image_queries.delete_unused_uploads([row[0] for row in rows], age))
        log.info("uploads_deleted", count=len(rows))
        return len(rows)

    @periodic(every=_MINUTE)
    def purge_idempotency_keys(self) -> None:
        age = self._settings.idempotency_retention
        self._execute(job_acceptance.purge_idempotency_keys(age))

    @periodic(every=_MINUTE)
    def purge_device_time(self) -> None:
        self._execute(quota_queries.purge_device_time(_DEVICE_TIME_KEPT))

    @periodic(every=_MINUTE)
    def sweep_orphans(self) -> int:
        """Delete objects of attempts that ended without a commit; returns how many.

        Workers remove their own, unless they were killed between upload and commit.

        Raises:
            StorageUnavailable: S3 cannot be reached; the rest is swept later.
        """
        now = datetime.now(UTC)
        after = self._swept_until or now - _LOOK_BACK - self._settings.orphan_grace
        attempts = self._read(
            job_queries.list_uncommitted_attempts(
                after,
                self._settings.orphan_grace,
                earliest_id_at(now - _LONGEST_WAIT),
                _AT_ONCE,
            )
        )
        swept = 0
        for job_id, number, session_id, ended_at in attempts:
            swept += self._sweep_attempt(job_id, number, session_id)
            self._swept_until = ended_at
        if swept:
            log.info("orphans_swept", objects=swept, attempts=len(attempts))
        return swept

    def _sweep_attempt(self, job_id: UUID, number: int, session_id: str) -> int:
        keys = set(self._storage.list_keys(f"{job_folder(session_id, job_id)}{number}/"))
        if not keys:
            return 0
        named = self._read(image_queries.list_keys_of_attempt(job_id, number))
        orphans = keys.difference(*named) if named else keys
        return self._storage.delete(orphans)

    @periodic(every=timedelta(seconds=30))
    def sweep_pending_deletions(self, age: timedelta = _ORPHANS_KEPT) -> int:
        """Delete objects whose rows went longer ago than `age`; returns how many.

        Raises:
            StorageUnavailable: S3 cannot be reached; the rest goes in a later round.
        """
        deadline = time.monotonic() + _ORPHAN_SECONDS
        swept = 0
        while time.monotonic() < deadline:
            rows = self._read(image_deletion.list_pending_deletions(age, _ORPHANS_AT_ONCE))
            if not rows:
                break
            for tenant_id, prefix in rows:
                swept += self._storage.delete(self._storage.list_keys(prefix))
                self._execute(image_deletion.delete_pending_deletions(tenant_id, [prefix]))
                if time.monotonic() > deadline:
                    break
        if swept:
            log.info("pending_deletions_swept", objects=swept)
        return swept

    @periodic(every=_TEN_MINUTES)
    def purge_batch_files(self) -> int:
        """Delete old files of batches; returns how many.

        Raises:
            StorageUnavailable: S3 cannot be reached; the rows stay, too.
        """
        with self._database.begin() as session:
            keys = session.scalars(
                batch_queries.purge_files(BATCH_FILES_KEPT, _FILES_AT_ONCE)
            ).all()
            self._storage.delete(keys)
        if keys:
            log.info("batch_files_purged", count=len(keys))
        return len(keys)

    @periodic(every=_TEN_MINUTES)
    def purge_batches(self) -> int:
        """Delete batches that ended longer ago than `job_retention` and have no jobs any more;
        returns how many."""
        age = self._settings.job_retention
        if age is None:
            return 0
        with self._database.begin() as session:
            purged = session.scalars(batch_queries.purge_emptied(age, _AT_ONCE)).all()
        if purged:
            log.info("batches_purged", count=len(purged))
        return len(purged)

    @periodic(every=_TEN_MINUTES)
    def purge_deliveries(self) -> None:
        """Apply the retention of the log of webhook deliveries."""
        self._execute(
            delivery_queries.purge(DELIVERIES_KEPT, _DELIVERIES_AT_ONCE),
            delivery_queries.purge_holds(),
        )

    @periodic(every=timedelta(hours=1))
    def purge_drains(self) -> None:
        """Delete drains of workers that are gone for good."""
        self._execute(admin_queries.purge_drains(_DRAINS_KEPT))

    def _read(self, statement: TypedReturnsRows[*Columns]) -> Sequence[Row[*Columns]]:
        with self._database.begin() as session:
            return session.execute(statement).all()

    def _execute(self, *statements: Executable) -> None:
        """Execute them in one transaction."""
        with self._database.begin() as session:
            for statement in statements:
                session.execute(statement)


def _delete_unused_prompts(session: Session, prompt_ids: Iterable[UUID]) -> None:
    """Locked first: of two deletions of a prompt's last images, each would see the other's."""
    ids = sorted(prompt_ids)
    session.execute(image_queries.lock_prompts(ids))
    session.execute(image_queries.delete_unused_prompts(ids))


def _newest_id_of(age: timedelta) -> UUID:
    return earliest_id_at(datetime.now(UTC) - age + _CLOCK_MARGIN)
