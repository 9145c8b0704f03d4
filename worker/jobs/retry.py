"""Go on through an outage of Postgres or S3: try again for as long as the job may go on.

A loop of its own rather than a library's, because a pause must end when the lease does.
"""

import time
from collections.abc import Callable
from datetime import timedelta
from typing import TypeVar

from shared.core.database import is_outage
from shared.core.errors import StorageUnavailable
from shared.core.logging import get_logger
from worker.jobs.lease import Lease, StopReason

log = get_logger(__name__)


PATIENCE = timedelta(minutes=10)
"""How long finished pictures wait for S3 or Postgres before the attempt is given up."""


HAND_BACK_PATIENCE = timedelta(seconds=3)
"""How long a job that must stop waits to have that recorded; its lease would end it as well."""


_FIRST_PAUSE = 0.2


_LONGEST_PAUSE = 2.0


T = TypeVar("T")


class LeaseGone(Exception):
    """The job was stopped, or somebody else has it now; what this attempt made is discarded."""


def with_storage(action: Callable[[], T], lease: Lease) -> T:
    """Do something with S3.

    Raises:
        LeaseGone: the job was stopped first.
        StorageUnavailable: S3 stayed away.
    """

    def one_try() -> T:
        if lease.stop_reason is not None:
            raise LeaseGone
        return action()

    return _retry(one_try, lambda error: isinstance(error, StorageUnavailable), lease, PATIENCE)


def with_ledger(action: Callable[[], T], lease: Lease) -> T:
    """Do something with Postgres for a job that goes on.

    Once the action was tried, its COMMIT may have gone through unanswered, so that it is tried
    again even when the lease seems lost: only the ledger knows whether it was lost or used.

    Raises:
        LeaseGone: the job was stopped before the first try, or must be handed back now.
        SQLAlchemyError: Postgres stayed away, or refuses the statement.
    """
    tried = False

    def one_try() -> T:
        nonlocal tried
        reason = lease.stop_reason
        if reason is StopReason.RELEASED or (reason is not None and not tried):
            raise LeaseGone
        tried = True
        return action()

    return _retry(one_try, is_outage, lease, PATIENCE)


def record_stop(action: Callable[[], T], lease: Lease) -> T:
    """Tell Postgres how a stopped job ended, within a few seconds or not at all.

    Raises:
        SQLAlchemyError: Postgres stayed away; the lease will run out instead.
    """
    return _retry(action, is_outage, lease, HAND_BACK_PATIENCE)


def _retry(
    action: Callable[[], T],
    passes: Callable[[Exception], bool],
    lease: Lease,
    patience: timedelta,
) -> T:
    deadline = time.monotonic() + patience.total_seconds()
    pause = _FIRST_PAUSE
    while True:
        try:
            return action()
        except Exception as error:
            if not passes(error) or time.monotonic() + pause >= deadline:
                raise
            log.warning("waiting_out", error=type(error).__name__, seconds=pause)
        if lease.stop_reason is None:
            lease.wait(pause)
        else:
            time.sleep(pause)
        pause = min(2 * pause, _LONGEST_PAUSE)
