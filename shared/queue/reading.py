"""Read what lies in Redis: a hint, which may be anything. What cannot be read is counted, no more.

Whoever gets None goes on as if nothing had been there.
"""

import json
from typing import Any
from uuid import UUID

from shared.logging import get_logger
from shared.metrics.dependencies import REDIS_UNREADABLE

_log = get_logger(__name__)


def unreadable(what: str, error: Exception) -> None:
    """Count something that was dropped, by what it should have been."""
    REDIS_UNREADABLE.labels(what).inc()
    _log.warning("unreadable_in_redis", what=what, error=type(error).__name__)


def read_object(what: str, text: bytes | str) -> dict[str, Any] | None:
    """A JSON object."""
    try:
        value = json.loads(text)
        if not isinstance(value, dict):
            raise TypeError(type(value).__name__)
    except (ValueError, TypeError, RecursionError) as error:
        unreadable(what, error)
        return None
    return value


def read_id(what: str, value: object) -> UUID | None:
    """A row's id, in whatever has arrived in its place."""
    try:
        return UUID(value.decode() if isinstance(value, bytes) else str(value))
    except ValueError as error:
        unreadable(what, error)
        return None


def job_of(message: bytes | str, *, in_hand: bool = False) -> UUID | None:
    """The job that a queued Celery message is about: its task id.

    Not counted: the same messages are looked at again and again, and are dropped by who takes them.
    """
    try:
        value = json.loads(message)
        return UUID((value[0] if in_hand else value)["headers"]["id"])
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
        return None
