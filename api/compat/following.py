"""Wait for a job on behalf of another API's client, and tell what happens meanwhile."""

import time
from collections.abc import AsyncGenerator

from api.context import Resources
from api.core.auth import unauthenticated
from api.core.principal import Principal
from api.jobs.followers import Following
from api.jobs.prefer_wait import ends_job, read_followed
from api.jobs.redis_events import START, StreamEvent
from api.jobs.schemas import Job
from api.jobs.sse import HEARTBEAT_SECONDS
from shared.core.ids import decode_id


async def follow(
    resources: Resources, principal: Principal, job: Job, seconds: float
) -> AsyncGenerator[StreamEvent | Job | None, None]:
    """A job's events as they come, None after 10 s without one, and last the job itself: ended, or
    as it is after `seconds`.

    Raises:
        Problem: 404 when the job was deleted meanwhile, 401 when the key has ended.
    """
    ends_at = time.monotonic() + seconds
    following = resources.get(Following)
    row_id = decode_id("job", job.id)
    with following.follow(row_id, principal.key_id, START, job.sequence) as follower:
        while job.finished_at is None and (left := ends_at - time.monotonic()) > 0:
            if not await follower.news(min(HEARTBEAT_SECONDS, left)):
                yield None
                continue
            if follower.key_has_ended:
                raise unauthenticated()
            has_ended = follower.take_move() and follower.has_ended
            for event in following.take_events(follower):
                has_ended = has_ended or ends_job(event)
                yield event
            if has_ended:
                job = await read_followed(resources, principal, job, follower)
    yield job
