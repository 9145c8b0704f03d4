"""A job's events in a Redis stream: written by whoever changes the job, read by event streams.

Fields of an entry: ``type`` (``job`` | ``progress`` | ``preview`` | ``image``) and ``data`` (JSON).
The stream is a convenience; the ledger is the truth, and a reader that finds no stream falls back
to it. Entry ids are Redis's own, so a reader that gives back the last one goes on after it.
"""

import json
from typing import Any, Protocol
from uuid import UUID

from shared.queue import names

MAX_ENTRIES = 600
"""About 150 s of progress at 4 a second, half with previews; older entries only repeat what newer
ones say."""
TTL_SECONDS = 3600
"""After its last event a stream is kept for late readers, then Redis drops it."""


class _Pipeline(Protocol):
    def xadd(self, name: str, fields: Any, *, maxlen: int, approximate: bool) -> Any: ...
    def expire(self, name: str, time: int) -> Any: ...


def append_event(pipeline: _Pipeline, job_id: UUID, kind: str, data: dict[str, Any]) -> None:
    """Queue one event on a redis-py pipeline, sync or async; the caller executes it."""
    key = names.events_key(job_id)
    entry = {"type": kind, "data": json.dumps(data, separators=(",", ":"))}
    pipeline.xadd(key, entry, maxlen=MAX_ENTRIES, approximate=True)
    pipeline.expire(key, TTL_SECONDS)
