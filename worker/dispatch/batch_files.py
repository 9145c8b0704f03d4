"""Forget the files that batches were to be made from, a week after they were sent."""

from datetime import timedelta

from sqlalchemy.orm import Session, sessionmaker

from shared.batches import statements
from shared.logging import get_logger
from shared.storage import Storage
from worker.dispatch.dispatcher import Duty

log = get_logger(__name__)

KEPT = timedelta(days=7)
_EVERY = timedelta(minutes=10)
_AT_ONCE = 100


class BatchFiles:
    """The duty of forgetting them."""

    def __init__(self, database: sessionmaker[Session], storage: Storage) -> None:
        self._database = database
        self._storage = storage

    @property
    def duties(self) -> list[Duty]:
        """For the dispatcher."""
        return [Duty("forget_batch_files", self.forget, every=_EVERY)]

    def forget(self) -> int:
        """Delete old files; returns how many.

        Raises:
            StorageUnavailable: S3 cannot be reached; the rows stay, too.
        """
        with self._database.begin() as session:
            keys = session.scalars(statements.forget_files(KEPT, _AT_ONCE)).all()
            self._storage.delete(keys)
        if keys:
            log.info("forgot_batch_files", count=len(keys))
        return len(keys)
