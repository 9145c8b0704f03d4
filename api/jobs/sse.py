"""A job's events for one client: a snapshot, then what happens, until the job has ended.

The database is the truth. Redis's stream adds progress, previews and promptness; while it is away
or has lost its entries, the stream continues with snapshots from the database.
"""

import re
import time
from collections.abc import AsyncGenerator
from dataclasses import dataclass

from fastapi.sse import format_sse_event

from api.context import Resources, parse_id
from api.core.errors import Problem
from api.core.principal import Principal
from api.jobs.followers import Follower, Following
from api.jobs.redis_events import START, StreamEvent, edges, order
from api.jobs.schemas import Job
from shared.jobs.state import TERMINAL_STATES

HEARTBEAT = b": alive\n\n"
HEARTBEAT_SECONDS = 10.0
"""Below the idle limits of common proxies."""
LIFE_SECONDS = 900.0
"""Then the stream ends and the client comes back with Last-Event-ID; a deploy need not wait."""
_RETRY_MS = 1000
_EVENT_ID = re.compile(r"(\d{1,18}-\d{1,18})(?:\.(\d{1,18}))?")
"""A position in Redis's stream; after it the sequence of a job that has ended."""


@dataclass
class _Reader:
    """Where one client's stream is."""

    resources: Resources
    principal: Principal
    job_id: str
    position: str
    """The Redis id of the newest entry that the client has or need not have."""
    with_previews: bool
    ends_at: float
    """`time.monotonic()`; the client comes back then, if it may."""
    sequence: int = -1
    """Of the newest snapshot sent."""
    ended: bool = False

    @property
    def is_over(self) -> bool:
        return self.ended or time.monotonic() > self.ends_at

    def show(self, job: Job) -> bytes:
        """The job as an event; notes whether it was the last."""
        self.sequence = job.sequence
        self.ended = job.state in TERMINAL_STATES
        return format_sse_event(
            event="job", data_str=job.model_dump_json(), id=self._id_of(job), retry=_RETRY_MS
        )

    def _id_of(self, job: Job) -> str | None:
        if self.ended:
            return f"{self.position}.{job.sequence}"
        return None if self.position == START else self.position

    async def translate(self, event: StreamEvent) -> bytes | None:
        """One entry of the stream as an event, or None if it says nothing new."""
        self.position = event.id
        if event.kind == "job":
            # Entries tell of a change; what the job is now, only the database says. An entry that
            # the database has moved past says nothing: its successor's entry is still to come.
            # Nor does one that a snapshot was quicker than.
            told = event.decoded().get("sequence")
            if told is not None and told <= self.sequence:
                return None
            job = await self.read()
            if job is None:
                return None
            return None if told is not None and told < job.sequence else self.show(job)
        if event.kind == "preview" and not self.with_previews:
            return None
        return format_sse_event(event=event.kind, data_str=event.data, id=event.id)

    async def read(self) -> Job | None:
        """The job; None if it was deleted, or Postgres is unavailable (followers hear later)."""
        try:
            following = self.resources.get(Following)
            return await following.read_job(self.resources, self.principal, self.job_id)
        except Problem as problem:
            if problem.kind.status != 503:
                self.ended = True
            return None


async def open_stream(
    resources: Resources,
    principal: Principal,
    job_id: str,
    last_event_id: str | None,
    *,
    with_previews: bool,
    seconds: float,
) -> AsyncGenerator[bytes, None] | None:
    """Events in SSE form for that many seconds at most, beginning with what the client has missed.

    None: the client has seen how the job ended, and nothing is to come.

    Raises:
        Problem: 404 for an unknown job, 503 when Postgres is unavailable.
    """
    match = _EVENT_ID.fullmatch(last_event_id or "")
    position, resumes = await _starting_point(resources, job_id, match[1] if match else None)
    # Read after the position was taken: the snapshot then holds all that came before it.
    job = await resources.get(Following).read_job(resources, principal, job_id)
    if match and match[2] == str(job.sequence) and job.state in TERMINAL_STATES:
        return None
    ends_at = time.monotonic() + min(seconds, LIFE_SECONDS)
    reader = _Reader(resources, principal, job_id, position, with_previews, ends_at)
    return _stream(reader, job, resumes=resumes)


async def _starting_point(
    resources: Resources, job_id: str, last_entry_id: str | None
) -> tuple[str, bool]:
    """Where to read on, and whether the client has seen everything before that."""
    row_id = parse_id("job", job_id, "job")
    known = await edges(resources, row_id)
    if known is None:
        return START, False
    oldest, newest = known
    if last_entry_id is None:
        return newest, False
    if not order(oldest) <= order(last_entry_id) < order(newest):
        return newest, False  # Entries are gone, the id was never given out, or nothing is new.
    return last_entry_id, True


async def _stream(reader: _Reader, job: Job, *, resumes: bool) -> AsyncGenerator[bytes, None]:
    """Events as they come, and what the database knows beyond them."""
    following = reader.resources.get(Following)
    row_id = parse_id("job", reader.job_id, "job")
    known = -1 if resumes else job.sequence
    with following.follow(row_id, reader.principal.key_id, reader.position, known) as follower:
        if not resumes:
            yield reader.show(job)
        while not reader.is_over:
            left = min(HEARTBEAT_SECONDS, reader.ends_at - time.monotonic())
            if not await follower.news(left):
                yield HEARTBEAT
                continue
            if follower.key_has_ended:
                return
            for event in following.take_events(follower):
                if (shown := await reader.translate(event)) is not None:
                    yield shown
                if reader.is_over:
                    return
            if follower.take_move() and (shown := await _show_move(reader, follower)) is not None:
                yield shown
            follower.sequence = max(follower.sequence, reader.sequence)


async def _show_move(reader: _Reader, follower: Follower) -> bytes | None:
    """The state that the database has moved on to, or None if the client has seen it.

    None, too, while Redis has entries that the client has not got: they come before that state, or
    the client would never get them.
    """
    if follower.events:
        follower.has_moved = True  # look again after those
        return None
    job = await reader.read()
    known = await edges(reader.resources, follower.followed)
    if follower.events or (known is not None and order(follower.position) < order(known[1])):
        follower.has_moved = True
        return None
    return reader.show(job) if job is not None and job.sequence > reader.sequence else None
