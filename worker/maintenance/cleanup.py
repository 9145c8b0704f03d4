"""What the leader deletes: old images, jobs, answers and files, and orphaned objects."""

import time
from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from uuid import UUID

from sqlalchemy.orm import Session, sessionmaker

from shared.batches import queries as batch_queries
from shared.core import quotas as quota_queries
from shared.core.ids import earliest_id_at, to_wire
from shared.core.logging import get_logger
from shared.core.settings import Settings
from shared.core.storage import Storage
from shared.images import deletion as image_deletion
from shared.images import queries as image_queries
from shared.jobs.queries import accept as job_acceptance
from shared.jobs.queries import periodic
from worker.maintenance.leader import Duty

log = get_logger(__name__)


_EVERY = timedelta(minutes=1)


_UPLOADS_EVERY = timedelta(minutes=10)
"""All uploads are looked through."""


_AT_ONCE = 200
"""Rows of a kind in one round: seconds of S3, not minutes."""


_DEVICE_TIME_KEPT = timedelta(days=31)


_LOOK_BACK = timedelta(days=1)
"""How far back a new leader looks for orphans; its predecessor has swept what is older."""


_LONGEST_WAIT = timedelta(days=14)
"""Attempts at jobs older than this are not looked at; a job's own retention takes their objects."""


_CLOCK_MARGIN = timedelta(days=1)
"""Ids carry the time of their maker's clock. The database's clock decides; this only narrows."""


class Retention:
    """The duties of forgetting."""

    def __init__(
        self, settings: Settings, database: sessionmaker[Session], storage: Storage
    ) -> None:
        self._settings = settings
        self._database = database
        self._storage = storage
        self._swept_until: datetime | None = None

    @property
    def duties(self) -> list[Duty]:
        """For the dispatcher."""
        return [
            Duty("forget_images", self.forget_images, every=_EVERY),
            Duty("forget_jobs", self.forget_jobs, every=_EVERY),
            Duty("forget_uploads", self.forget_uploads, every=_UPLOADS_EVERY),
            Duty("forget_answers", self.forget_answers, every=_EVERY),
            Duty("sweep_orphans", self.sweep_orphans, every=_EVERY),
        ]

    def forget_images(self) -> int:
        """Delete images older than `image_retention`; returns how many.

        Raises:
            StorageUnavailable: S3 cannot be reached; nothing was forgotten.
        """
        age = self._settings.image_retention
        if age is None:
            return 0
        with self._database.begin() as session:
            rows = session.execute(
                image_queries.list_old_images(age, _newest_id_of(age), _AT_ONCE)
            ).all()
        if not rows:
            return 0
        self._storage.delete([key for row in rows for key in (row[2], row[3])])
        with self._database.begin() as session:
            session.execute(image_queries.delete_images([row[0] for row in rows]))
            _forget_unused_prompts(session, {row[1] for row in rows})
        log.info("images_forgotten", count=len(rows))
        return len(rows)

    def forget_jobs(self) -> int:
        """Delete jobs that ended longer ago than `job_retention`; returns how many.

        Raises:
            StorageUnavailable: S3 cannot be reached; no row was deleted.
        """
        age = self._settings.job_retention
        if age is None:
            return 0
        with self._database.begin() as session:
            rows = session.execute(periodic.list_ended(age, _newest_id_of(age), _AT_ONCE)).all()
        if not rows:
            return 0
        for job_id, session_id in rows:
            self._storage.delete(self._storage.list_keys(f"{session_id}/{to_wire('job', job_id)}/"))
        ids = [row[0] for row in rows]
        with self._database.begin() as session:
            prompts = session.scalars(image_queries.list_prompts_of_jobs(ids)).all()
            session.execute(periodic.delete_ended(ids))
            _forget_unused_prompts(session, prompts)
        log.info("jobs_forgotten", count=len(rows))
        return len(rows)

    def forget_uploads(self) -> int:
        """Delete uploads that nobody has used for `upload_retention`; returns how many.

        Raises:
            StorageUnavailable: S3 cannot be reached; nothing was forgotten.
        """
        age = self._settings.upload_retention
        if age is None:
            return 0
        with self._database.begin() as session:
            rows = session.execute(image_queries.list_unused_uploads(age, _AT_ONCE)).all()
        if not rows:
            return 0
        self._storage.delete([key for _, key in rows])
        with self._database.begin() as session:
            session.execute(image_queries.delete_unused_uploads([row[0] for row in rows], age))
        log.info("uploads_forgotten", count=len(rows))
        return len(rows)

    def forget_answers(self) -> None:
        """Delete idempotency keys older than `idempotency_retention`, and old days' device time."""
        with self._database.begin() as session:
            session.execute(
                job_acceptance.forget_idempotency_keys(self._settings.idempotency_retention)
            )
            session.execute(quota_queries.purge_device_time(_DEVICE_TIME_KEPT))

    def sweep_orphans(self) -> int:
        """Delete objects of attempts that ended without a commit; returns how many.

        Workers remove their own, unless they were killed between upload and commit.

        Raises:
            StorageUnavailable: S3 cannot be reached; the rest is swept later.
        """
        now = datetime.now(UTC)
        after = self._swept_until or now - _LOOK_BACK - self._settings.orphan_grace
        with self._database.begin() as session:
            attempts = session.execute(
                periodic.list_fruitless_attempts(
                    after,
                    self._settings.orphan_grace,
                    earliest_id_at(now - _LONGEST_WAIT),
                    _AT_ONCE,
                )
            ).all()
        swept = 0
        for job_id, number, session_id, ended_at in attempts:
            swept += self._sweep_attempt(job_id, number, session_id)
            self._swept_until = ended_at
        if swept:
            log.info("orphans_swept", objects=swept, attempts=len(attempts))
        return swept

    def _sweep_attempt(self, job_id: UUID, number: int, session_id: str) -> int:
        keys = set(self._storage.list_keys(f"{session_id}/{to_wire('job', job_id)}/{number}/"))
        if not keys:
            return 0
        with self._database.begin() as session:
            named = session.execute(image_queries.list_keys_of_attempt(job_id, number)).all()
        orphans = keys.difference(*named) if named else keys
        return self._storage.delete(orphans)


def _forget_unused_prompts(session: Session, prompt_ids: Iterable[UUID]) -> None:
    """Locked first: of two deletions of a prompt's last pictures, each would see the other's."""
    ids = sorted(prompt_ids)
    session.execute(image_queries.lock_prompts(ids))
    session.execute(image_queries.delete_unused_prompts(ids))


def _newest_id_of(age: timedelta) -> UUID:
    return earliest_id_at(datetime.now(UTC) - age + _CLOCK_MARGIN)


_ORPHANS_EVERY = timedelta(seconds=30)


_ORPHAN_AGE = timedelta(seconds=30)
"""Whoever deleted the rows removes the objects within seconds, unless it was stopped."""


_ORPHANS_AT_ONCE = 50


_SECONDS = 5.0
"""Of one round: the dispatcher's other duties wait for it."""


class Leftovers:
    """The duty of sweeping."""

    def __init__(
        self, database: sessionmaker[Session], storage: Storage, age: timedelta = _ORPHAN_AGE
    ) -> None:
        self._database = database
        self._storage = storage
        self._age = age

    @property
    def duties(self) -> list[Duty]:
        """For the dispatcher."""
        return [Duty("sweep_leftovers", self.sweep, every=_ORPHANS_EVERY)]

    def sweep(self) -> int:
        """Returns how many objects went.

        Raises:
            StorageUnavailable: S3 cannot be reached; the rest goes in a later round.
        """
        deadline = time.monotonic() + _SECONDS
        swept = 0
        while time.monotonic() < deadline:
            with self._database.begin() as session:
                rows = session.execute(
                    image_deletion.list_doomed(self._age, _ORPHANS_AT_ONCE)
                ).all()
            if not rows:
                break
            for tenant_id, prefix in rows:
                swept += self._storage.delete(self._storage.list_keys(prefix))
                with self._database.begin() as session:
                    session.execute(image_deletion.forget_doomed(tenant_id, [prefix]))
                if time.monotonic() > deadline:
                    break
        if swept:
            log.info("leftovers_swept", objects=swept)
        return swept


KEPT = timedelta(days=7)


_FILES_EVERY = timedelta(minutes=10)


_FILES_AT_ONCE = 100


class BatchFiles:
    """The duty of forgetting them."""

    def __init__(self, database: sessionmaker[Session], storage: Storage) -> None:
        self._database = database
        self._storage = storage

    @property
    def duties(self) -> list[Duty]:
        """For the dispatcher."""
        return [Duty("forget_batch_files", self.forget, every=_FILES_EVERY)]

    def forget(self) -> int:
        """Delete old files; returns how many.

        Raises:
            StorageUnavailable: S3 cannot be reached; the rows stay, too.
        """
        with self._database.begin() as session:
            keys = session.scalars(batch_queries.forget_files(KEPT, _FILES_AT_ONCE)).all()
            self._storage.delete(keys)
        if keys:
            log.info("forgot_batch_files", count=len(keys))
        return len(keys)
