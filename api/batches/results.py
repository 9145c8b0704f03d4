"""What came of a batch, as JSONL: results as they come, errors of the file and of the run."""

import asyncio
import json
import time
from collections import defaultdict
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import nullcontext
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

from api.batches.report import unpack
from api.batches.service import find
from api.context import Resources
from api.core.fairness import on_thread
from api.core.principal import Principal
from api.jobs.followers import Following
from shared.batches import queries
from shared.core.filters import filtered_images
from shared.core.ids import encode_id
from shared.images import queries as image_queries
from shared.images.models import Image
from shared.jobs.models import Job
from shared.jobs.state import JobState

_AT_ONCE = 200
_PAUSE_SECONDS = 0.5
"""Between looks for new results, while one after the other comes."""
_HEARTBEAT_SECONDS = 5.0
_LATE = timedelta(seconds=2)
"""A result is hardly ever committed later than this after its `finished_at`,"""
_LATEST = timedelta(seconds=60)
"""and never later than this: Postgres ends transactions that take this long."""
_LONGEST_STREAM = 600.0
"""Seconds; a client that wants to continue asks again."""
_UNSUCCESSFUL = (JobState.FAILED, JobState.EXPIRED, JobState.CANCELED)


async def stream_results(
    resources: Resources, principal: Principal, batch_id: UUID, *, follow: bool
) -> AsyncGenerator[bytes, None]:
    """A line for each job that has ended, in the order of the ends.

    With `follow` it continues while the batch runs, for ten minutes at most; an empty line every
    few seconds keeps the connection alive.
    """
    deadline = time.monotonic() + _LONGEST_STREAM
    sent: set[UUID] = set()
    after: tuple[datetime, UUID] | None = None
    following = resources.get(Following)
    with (
        following.follow_batch(batch_id, principal.key_id) if follow else nullcontext() as follower
    ):
        while True:
            # Asked before the jobs: what ends afterwards belongs to the next round.
            is_last = follower is None or await _has_ended(resources, principal, batch_id)
            # Commits do not come in the order of `finished_at`: look back, skip what is sent.
            if after is not None:
                after = after[0] - (_LATEST if is_last else _LATE), UUID(int=0)
            async for jobs in _finished(resources, principal, batch_id, after):
                new = [job for job in jobs if job.id not in sent]
                sent.update(job.id for job in new)
                last = _place(jobs[-1])
                after = max(after, last) if after else last
                if new:
                    yield await _render(resources, principal, new)
            if follower is None or is_last:
                return
            await asyncio.sleep(_PAUSE_SECONDS)
            while not await follower.news(_HEARTBEAT_SECONDS):
                yield b"\n"
                if time.monotonic() > deadline:
                    return
            if follower.key_has_ended or time.monotonic() > deadline:
                return
            following.take_events(follower)


async def stream_errors(
    resources: Resources, principal: Principal, batch_id: UUID
) -> AsyncIterator[bytes]:
    """The validation report, then a line for each job that ended without success so far."""
    async with resources.tenant_transaction(principal) as session:
        report = (await session.scalars(queries.get_report(batch_id))).one_or_none()
    for piece in unpack(report.jsonl_zlib) if report is not None else ():
        if piece:
            yield piece
    async for jobs in _finished(resources, principal, batch_id, None, _UNSUCCESSFUL):
        yield b"".join(_line(_failure(job)) for job in jobs)


async def _finished(
    resources: Resources,
    principal: Principal,
    batch_id: UUID,
    after: tuple[datetime, UUID] | None,
    states: Sequence[str] = (),
) -> AsyncIterator[Sequence[Job]]:
    """Ended jobs, some hundred at a time; no transaction stays open while a client reads."""
    while True:
        async with resources.tenant_transaction(principal) as session:
            statement = queries.list_finished(batch_id, _AT_ONCE, after=after, states=states)
            jobs = (await session.scalars(statement)).all()
        if jobs:
            yield jobs
            after = _place(jobs[-1])
        if len(jobs) < _AT_ONCE:
            return


async def _has_ended(resources: Resources, principal: Principal, batch_id: UUID) -> bool:
    async with resources.tenant_transaction(principal) as session:
        return (await find(session, principal, batch_id)).finished_at is not None


async def _render(resources: Resources, principal: Principal, jobs: Sequence[Job]) -> bytes:
    async with resources.tenant_transaction(principal) as session:
        rows = await session.scalars(image_queries.list_images_of_jobs([job.id for job in jobs]))
        images: dict[UUID, list[Image]] = defaultdict(list)
        for image in rows.all():
            images[image.job_id].append(image)

    def render() -> bytes:
        return b"".join(_line(_result(resources, job, images[job.id])) for job in jobs)

    return await on_thread(render)  # signing hundreds of URLs takes a while


def _result(resources: Resources, job: Job, images: Sequence[Image]) -> dict[str, Any]:
    return {
        "custom_id": job.custom_id,
        "line": job.line,
        "job_id": encode_id("job", job.id),
        "state": job.state,
        "seeds": job.seeds,
        "images": filtered_images(job.filtered)
        + [
            {
                **image.facts(),
                "url": resources.storage.presign(image.s3_key),
                "receipt": image.receipt,
            }
            for image in images
        ],
        "error": _error(job),
        "finished_at": job.finished_at.isoformat() if job.finished_at else None,
    }


def _failure(job: Job) -> dict[str, Any]:
    error = _error(job) or {"code": job.state, "message": f"The job is {job.state}."}
    return {
        "type": "job",
        "line": job.line,
        "custom_id": job.custom_id,
        "job_id": encode_id("job", job.id),
        "pointer": None,
        **error,
    }


def _error(job: Job) -> dict[str, Any] | None:
    if job.error_code is None:
        return None
    return {"code": job.error_code, "message": job.error_message}


def _line(record: dict[str, Any]) -> bytes:
    return json.dumps(record, separators=(",", ":")).encode("ascii") + b"\n"


def _place(job: Job) -> tuple[datetime, UUID]:
    assert job.finished_at is not None  # noqa: S101 - only ended jobs are listed
    return job.finished_at, job.id
