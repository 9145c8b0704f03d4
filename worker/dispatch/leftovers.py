"""Remove objects whose rows a client has deleted and that storage did not take at once."""

import time
from datetime import timedelta

from sqlalchemy.orm import Session, sessionmaker

from shared.gallery import deletion
from shared.logging import get_logger
from shared.storage import Storage
from worker.dispatch.dispatcher import Duty

log = get_logger(__name__)

_EVERY = timedelta(seconds=30)
_AGE = timedelta(seconds=30)
"""Whoever deleted the rows removes the objects within seconds, unless it was stopped."""
_AT_ONCE = 50
_SECONDS = 5.0
"""Of one round: the dispatcher's other duties wait for it."""


class Leftovers:
    """The duty of sweeping."""

    def __init__(
        self, database: sessionmaker[Session], storage: Storage, age: timedelta = _AGE
    ) -> None:
        self._database = database
        self._storage = storage
        self._age = age

    @property
    def duties(self) -> list[Duty]:
        """For the dispatcher."""
        return [Duty("sweep_leftovers", self.sweep, every=_EVERY)]

    def sweep(self) -> int:
        """Returns how many objects went.

        Raises:
            StorageUnavailable: S3 cannot be reached; the rest goes in a later round.
        """
        deadline = time.monotonic() + _SECONDS
        swept = 0
        while time.monotonic() < deadline:
            with self._database.begin() as session:
                rows = session.execute(deletion.list_doomed(self._age, _AT_ONCE)).all()
            if not rows:
                break
            for tenant_id, prefix in rows:
                swept += self._storage.delete(self._storage.list_keys(prefix))
                with self._database.begin() as session:
                    session.execute(deletion.forget_doomed(tenant_id, [prefix]))
                if time.monotonic() > deadline:
                    break
        if swept:
            log.info("leftovers_swept", objects=swept)
        return swept
