"""One request of an MCP client: who asks, how it waits, and when its job becomes a task."""

import time
from collections.abc import Iterator
from contextlib import aclosing, contextmanager
from typing import Any, cast

from mcp.server.context import ServerRequestContext
from mcp_types import CallToolResult
from starlette.requests import Request

from api.compat.following import follow
from api.compat.mcp.results import Results
from api.context import Resources
from api.core.errors import Problem
from api.core.limits import RELEASE
from api.core.principal import Principal
from api.jobs.redis_events import StreamEvent
from api.jobs.schemas import Job

TASKS = "io.modelcontextprotocol/tasks"
"""The extension SEP-2663."""
PRINCIPAL = "darkroom.principal"
"""Where a request's scope has who sent it."""
_BETWEEN_NOTICES = 0.25
"""Seconds."""

Context = ServerRequestContext[Any, Any]


class Call:
    """What a handler needs of the request that it answers."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self.request: Request = cast("Request", context.request)
        self.principal: Principal = self.request.scope[PRINCIPAL]
        self.resources: Resources = self.request.app.state.resources
        self.results = Results(self.resources, self.principal)
        self.deferred: Job | None = None
        """The job that the answer is a task about, rather than a result."""

    def require(self, scope: str) -> None:
        """Refuse a key without the scope.

        Raises:
            Problem: 403 `insufficient_scope`.
        """
        if not self.principal.may(scope):
            raise Problem("insufficient_scope", f"This needs the scope {scope}.")

    @property
    def takes_tasks(self) -> bool:
        """Whether the client has declared tasks, and its key may look at them."""
        declared = self._context.session.client_capabilities
        known = declared is not None and TASKS in (declared.extensions or {})
        return known and self.principal.may("jobs:read")

    def let_go_of_body(self) -> None:
        """The message has been dealt with, and the answer may be minutes away: let the next large
        one in."""
        self.request.scope[RELEASE]()

    @contextmanager
    def waiting(self, seconds: int) -> Iterator[None]:
        """Hold one of the key's waits, if there is anything to wait for.

        Raises:
            Problem: 429 `too_many_waits`.
        """
        if not seconds:
            yield
            return
        with self.resources.waits.hold(self.principal.key_id, self.request.scope):
            yield

    async def wait_for_accepted(self, job: Job, seconds: int) -> Job:
        """Wait for a job that this call has queued: whatever happens meanwhile, it is accepted."""
        if self.takes_tasks and job.finished_at is None:
            self.deferred = job
            return job
        try:
            return await self.wait(job, seconds)
        except Problem:
            return job

    async def wait(self, job: Job, seconds: int) -> Job:
        """The job when it has ended, or after `seconds`; the client is told of its progress.

        Raises:
            Problem: 404 when the job was deleted meanwhile, 401 when the key has ended.
        """
        progress = _Progress(self._context, job)
        await progress.tell(0.0, f"{job.id} is {job.state}")
        async with aclosing(follow(self.resources, self.principal, job, seconds)) as followed:
            async for news in followed:
                if isinstance(news, Job):
                    job = news
                elif news is not None:
                    await progress.take(news)
        return job


class _Progress:
    """Progress notifications: a few a second, each further than the one before."""

    def __init__(self, context: Context, job: Job) -> None:
        self._session = context.session
        self._job = job
        self._told = -1.0
        self._next = 0.0

    async def take(self, event: StreamEvent) -> None:
        """Tell of an event, if it is one of progress."""
        if event.kind != "progress" or time.monotonic() < self._next:
            return
        data = event.decoded()
        fraction = data.get("job_fraction")
        if fraction is None:
            fraction = data["fraction"] / len(self._job.seeds)
        await self.tell(fraction, f"{self._job.id}: step {data['step']} of {data['steps']}")

    async def tell(self, fraction: float, message: str) -> None:
        """Nothing is sent where the client has not asked for it."""
        if fraction > self._told:
            self._told, self._next = fraction, time.monotonic() + _BETWEEN_NOTICES
            await self._session.report_progress(fraction, 1.0, message)


Answer = CallToolResult | dict[str, Any]
"""A result, or a task in its place."""
