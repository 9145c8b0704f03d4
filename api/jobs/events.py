"""Read a job's event stream in Redis; every reader can also do without it."""

import contextlib
import json
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any
from uuid import UUID

from pydantic import BaseModel, Field, ValidationError
from redis.asyncio import Redis

from api.core.publisher import Circuit, RedisDown
from api.jobs.schemas import Progress
from shared.core import broker
from shared.core.broker import append_event, unreadable
from shared.jobs.models import Job

START = "0-0"
"""Before the first entry of any stream."""


_RECENT = 8
"""Entries behind which the newest progress is not to be found: previews follow it."""


class _Said(BaseModel):
    """Data of an event that says nothing which this module needs."""


class _Transition(_Said):
    state: str | None = None
    sequence: int = 0


class _Step(_Said):
    step: int = Field(ge=0)
    steps: int = Field(ge=1)
    fraction: float = Field(ge=0, le=1)
    job_fraction: float | None = Field(default=None, ge=0, le=1)
    """Workers of older releases do not say how far the other images are."""


_KINDS: dict[str, type[_Said]] = {
    "job": _Transition,
    "progress": _Step,
    "preview": _Said,
    "image": _Said,
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
    found = []
    for entry_id, fields in raw:
        event = StreamEvent(entry_id, fields.get("type", ""), fields.get("data", ""))
        try:
            _KINDS[event.kind].model_validate_json(event.data)
        except (KeyError, ValidationError) as error:
            unreadable("event", error)
        else:
            found.append(event)
    return found


def order(entry_id: str) -> tuple[int, int]:
    """What entries of a stream are ordered by."""
    milliseconds, _, number = entry_id.partition("-")
    return int(milliseconds), int(number)


async def edges(redis: Redis, circuit: Circuit, job_id: UUID) -> tuple[str, str] | None:
    """Ids of the oldest and the newest entry; None without a stream or without Redis."""
    if circuit.is_open:
        return None
    key = broker.events_key(job_id)
    pipeline = redis.pipeline(transaction=True)
    pipeline.xrange(key, count=1)
    pipeline.xrevrange(key, count=1)
    try:
        oldest, newest = await circuit.call(pipeline.execute())
    except RedisDown:
        return None
    return (oldest[0][0], newest[0][0]) if oldest and newest else None


async def announce(redis: Redis, circuit: Circuit, job: Job) -> None:
    """Tell followers of a transition that this process made. Without Redis nobody is told."""
    if circuit.is_open:
        return
    pipeline = redis.pipeline(transaction=False)
    append_event(pipeline, job.id, "job", {"state": str(job.state), "sequence": job.sequence})
    if job.cancel_requested:
        # The worker that runs it looks at the ledger now, not at its next heartbeat.
        pipeline.publish(broker.STOP_CHANNEL, str(job.id))
    with contextlib.suppress(RedisDown):
        await circuit.call(pipeline.execute())


async def read_progress(
    redis: Redis, circuit: Circuit, job_id: UUID, images: int
) -> Progress | None:
    """How far a running job is, from its latest events; None when Redis has nothing to say."""
    if circuit.is_open:
        return None
    try:
        recent = await circuit.call(redis.xrevrange(broker.events_key(job_id), count=_RECENT))
    except RedisDown:
        return None
    for event in entries(recent or ()):
        if event.kind == "job":
            break  # What lies before it belongs to an earlier attempt.
        if event.kind == "progress":
            said = _Step.model_validate_json(event.data)
            whole = said.fraction / images if said.job_fraction is None else said.job_fraction
            return Progress(step=said.step, steps=said.steps, fraction=whole)
    return None
