"""Read a job's event stream in Redis; every reader can also do without it."""

import contextlib
import json
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import takewhile
from typing import Any
from uuid import UUID

from pydantic import BaseModel, Field, ValidationError

from api.context import Resources
from api.core.publisher import RedisDown
from api.jobs.schemas import Progress
from shared.core import broker
from shared.core.broker import append_end, append_event, unreadable
from shared.jobs.models import Job

START = "0-0"
"""Before the first entry of any stream."""

_RECENT = 8
"""Entries behind which the newest progress is not to be found: previews follow it."""


class _EventData(BaseModel):
    """Data of an event of which this module needs nothing."""


class _Transition(_EventData):
    state: str | None = None
    sequence: int = 0


class _Step(_EventData):
    step: int = Field(ge=0)
    steps: int = Field(ge=1)
    fraction: float = Field(ge=0, le=1)
    job_fraction: float | None = Field(default=None, ge=0, le=1)
    """Workers of older releases do not say how far the other images are."""


_KINDS: dict[str, type[_EventData]] = {
    "job": _Transition,
    "progress": _Step,
    "preview": _EventData,
    "image": _EventData,
    "end": _EventData,
}


@dataclass(frozen=True)
class StreamEvent:
    """One entry: Redis's id, its type, its data as JSON text."""

    id: str
    kind: str
    data: str

    def decoded(self) -> dict[str, Any]:
        """The data; empty where they are not a JSON object."""
        try:
            value = json.loads(self.data)
        except ValueError:
            return {}
        return value if isinstance(value, dict) else {}


def entries(raw: Iterable[Any]) -> list[StreamEvent]:
    """Entries as redis-py gives them, (id, fields), without those that are no events."""
    events = []
    for entry_id, fields in raw:
        event = StreamEvent(entry_id, fields.get("type", ""), fields.get("data", ""))
        try:
            _KINDS[event.kind].model_validate_json(event.data)
        except (KeyError, ValidationError) as error:
            unreadable("event", error)
        else:
            events.append(event)
    return events


def order(entry_id: str) -> tuple[int, int]:
    """What entries of a stream are ordered by."""
    milliseconds, _, number = entry_id.partition("-")
    return int(milliseconds), int(number)


async def edges(resources: Resources, job_id: UUID) -> tuple[str, str] | None:
    """Ids of the oldest and the newest entry; None without a stream or without Redis."""
    key = broker.events_key(job_id)
    pipeline = resources.redis.pipeline(transaction=True)
    pipeline.xrange(key, count=1)
    pipeline.xrevrange(key, count=1)
    try:
        oldest, newest = await resources.circuit_breaker.call(pipeline.execute)
    except RedisDown:
        return None
    return (oldest[0][0], newest[0][0]) if oldest and newest else None


async def publish_state(resources: Resources, job: Job) -> None:
    """Tell followers of a transition that this process made. Without Redis nobody is told."""
    pipeline = resources.redis.pipeline(transaction=False)
    append_event(pipeline, job.id, "job", {"state": str(job.state), "sequence": job.sequence})
    if job.batch_id is not None and job.finished_at is not None:
        append_end(pipeline, job.batch_id)
    if job.cancel_requested:
        # The worker that runs it looks at the database now, not at its next heartbeat.
        pipeline.publish(broker.STOP_CHANNEL, str(job.id))
    with contextlib.suppress(RedisDown):
        await resources.circuit_breaker.call(pipeline.execute)


async def publish_end(resources: Resources, batch_id: UUID) -> None:
    """Tell followers of a batch that jobs of it have ended. Without Redis nobody is told."""
    pipeline = resources.redis.pipeline(transaction=False)
    append_end(pipeline, batch_id)
    with contextlib.suppress(RedisDown):
        await resources.circuit_breaker.call(pipeline.execute)


async def read_preview(resources: Resources, job_id: UUID) -> str | None:
    """The newest preview of a running job, a WebP file in base64; None when Redis has none."""
    for event in await _read_newest(resources, job_id):
        if event.kind == "preview" and isinstance(data := event.decoded().get("data"), str):
            return data
    return None


async def _read_newest(resources: Resources, job_id: UUID) -> list[StreamEvent]:
    """A job's latest events since its last transition, newest first; none without Redis."""
    key, redis = broker.events_key(job_id), resources.redis
    try:
        recent = await resources.circuit_breaker.call(redis.xrevrange, key, count=_RECENT)
    except RedisDown:
        return []
    # What lies before a transition belongs to an earlier attempt.
    return list(takewhile(lambda event: event.kind != "job", entries(recent or ())))


async def read_progress(resources: Resources, job_id: UUID, images: int) -> Progress | None:
    """How far a running job is, from its latest events; None when Redis has nothing to say."""
    for event in await _read_newest(resources, job_id):
        if event.kind == "progress":
            at = _Step.model_validate_json(event.data)
            fraction = at.fraction / images if at.job_fraction is None else at.job_fraction
            return Progress(step=at.step, steps=at.steps, fraction=fraction)
    return None
