"""Keep a worker alive when messages can be neither acknowledged nor given back.

When Redis goes away while jobs are in hand, their messages are nobody's. kombu's collected
connection then raises an AttributeError, where Celery 5.7 expects connection errors, and Celery
stops the worker, warmed models and all. A message that stays unacknowledged does no harm: it is
delivered again some day, and finds nothing to claim.
"""

from typing import Any

from celery import Celery
from celery.worker.request import Request
from kombu.transport.redis import Channel, QoS

from shared.logging import get_logger

log = get_logger(__name__)


class LedgerRequest(Request):  # type: ignore[misc]
    """A request whose acknowledgement may fail for whatever reason; it is logged."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._connection_errors = (Exception,)


class LedgerQoS(QoS):
    """Gives unacknowledged messages back when a connection closes, if that still can be done."""

    def restore_unacked_once(self, *args: Any, **options: Any) -> None:
        """As kombu's, but it never raises."""
        try:
            super().restore_unacked_once(*args, **options)  # type: ignore[no-untyped-call]
        except Exception as error:
            log.warning("messages_not_given_back", error=type(error).__name__)


def forgive(app: Celery) -> None:
    """Let this process's consumers outlive a lost connection with messages in hand."""
    app.Task.Request = f"{__name__}:{LedgerRequest.__name__}"
    Channel.QoS = LedgerQoS
