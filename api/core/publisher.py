"""The API's side of Redis: publish jobs, and never wait for a Redis that is dead."""

import asyncio
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from contextvars import copy_context
from functools import partial
from typing import Any, TypeVar
from uuid import UUID

from celery import Celery
from redis.exceptions import ResponseError

from api.core.groups import Groups
from shared.core import telemetry
from shared.core.broker import (
    REDIS_AWAY,
    JobMessage,
    job_message,
    publish_deliveries,
    publish_embedding,
    publish_jobs,
    unreadable,
)
from shared.core.logging import get_logger
from shared.core.metrics import REDIS_ERRORS
from shared.jobs.models import Job

_log = get_logger(__name__)
T = TypeVar("T")

_CALL_TIMEOUT = 0.2
"""Seconds one request gives Redis. A healthy one answers a publish in about 1 ms."""

_TICK = 0.01
"""What one turn of the event loop counts at most, however long it takes."""

AT_ONCE = 32
"""Calls of Redis; the others wait in line, which is not Redis' time."""

_PAUSE = 1.0
"""Seconds during which nobody asks a Redis that has just failed."""


class RedisDown(Exception):
    """Redis did not answer now, or failed within the last second."""


class CircuitBreaker:
    """Lets one request in a second find out that Redis is still down; the others skip it."""

    def __init__(self) -> None:
        self._closed_until = 0.0
        self._turns = asyncio.Semaphore(AT_ONCE)

    @property
    def is_open(self) -> bool:
        """Whether Redis failed within the last second."""
        return time.monotonic() < self._closed_until

    async def call(self, work: Callable[..., Awaitable[T]], *args: Any, **options: Any) -> T:
        """Await `work(*args)` for at most 0.2 s, in which the event loop was free.

        Raises:
            RedisDown: it failed, or something has failed within the last second.
        """
        if self.is_open:
            raise RedisDown
        async with self._turns:
            return await self._call(work, *args, **options)

    async def _call(self, work: Callable[..., Awaitable[T]], *args: Any, **options: Any) -> T:
        if self.is_open:  # by one that was before it in line
            raise RedisDown
        try:
            async with _free_time(_CALL_TIMEOUT):
                return await work(*args, **options)
        except REDIS_AWAY as error:
            if _is_wrong_type(error):
                unreadable("key", error)  # this key alone: Redis is there for all others
                raise RedisDown from error
            self._closed_until = time.monotonic() + _PAUSE
            REDIS_ERRORS.inc()
            _log.warning("redis_unavailable", reason=type(error).__name__)
            raise RedisDown from error


@asynccontextmanager
async def _free_time(seconds: float) -> AsyncIterator[None]:
    """`asyncio.timeout`, by a clock that stands still while the event loop is held up: what was
    answered meanwhile is read before the next tick."""
    loop = asyncio.get_running_loop()
    left = round(seconds / _TICK)
    timer: asyncio.TimerHandle

    def tick() -> None:
        nonlocal left, timer
        left -= 1
        if left > 0:
            timer = loop.call_later(_TICK, tick)
        else:
            timeout.reschedule(loop.time())

    timer = loop.call_later(_TICK, tick)
    async with asyncio.timeout(None) as timeout:
        try:
            yield
        finally:
            timer.cancel()


def _is_wrong_type(error: BaseException) -> bool:
    """Whether Redis refused for the sake of one key. kombu wraps its answers, pipelines quote."""
    answer = error if isinstance(error, ResponseError) else error.__cause__
    return isinstance(answer, ResponseError) and "WRONGTYPE" in str(answer)


class JobPublisher:
    """Sends Celery messages from threads: kombu's publishing blocks."""

    def __init__(self, app: Celery, circuit_breaker: CircuitBreaker) -> None:
        self._app = app
        self._circuit_breaker = circuit_breaker
        self._threads = ThreadPoolExecutor(4, thread_name_prefix="publish")
        # Jobs are in the database by now: none is refused.
        self._groups: Groups[JobMessage, bool] = Groups(
            "publish", self._send, waiting_per_key=sys.maxsize
        )

    async def publish(self, job: Job) -> bool:
        """Hand the job to its queue. False when Redis is down: the dispatcher will do it."""
        if self._circuit_breaker.is_open:
            return False
        with telemetry.span("publish job", "producer") as span:
            # The message takes its headers from this request's context, into the group.
            message = job_message(job.id, job.model, job.queue_class)
            # In the order of arrival: each has had its turn when it was accepted.
            published = await self._groups.add("", message)
            if not published:
                span.fail("Redis is down; the dispatcher will publish it")
        return published

    async def _send(self, messages: Sequence[JobMessage]) -> list[bool]:
        """Publish what waits together in one round trip."""
        sent = await self._is_sent(partial(publish_jobs, self._app, messages))
        return [sent] * len(messages)

    async def _is_sent(self, send: Callable[[], None]) -> bool:
        """Never raises: what it tells of is committed, and the dispatcher finds it."""
        run_in_executor = asyncio.get_running_loop().run_in_executor
        try:
            await self._circuit_breaker.call(run_in_executor, self._threads, send)
        except RedisDown:
            return False
        except Exception:
            _log.exception("publish_failed")
            return False
        return True

    async def publish_deliveries(self, delivery_ids: Sequence[UUID]) -> None:
        """Hint that these webhook deliveries are due. Without Redis the dispatcher finds them."""
        if delivery_ids:
            send = partial(copy_context().run, publish_deliveries, self._app, delivery_ids)
            await self._is_sent(send)

    async def ask_for_embedding(
        self, task: str, model: str, subject: str, *, reply_key: str, seconds: float
    ) -> None:
        """Ask a CPU worker for an embedding; see `shared.core.broker.publish_embedding`.

        Raises:
            RedisDown: the request did not reach the queue.
        """
        if self._circuit_breaker.is_open:
            raise RedisDown
        ask = partial(
            publish_embedding, self._app, task, model, subject, reply_key=reply_key, seconds=seconds
        )
        sent = asyncio.get_running_loop().run_in_executor(self._threads, ask)
        try:
            await asyncio.wait_for(sent, seconds)
        except REDIS_AWAY as error:
            raise RedisDown from error

    def close(self) -> None:
        """Stop the threads; a publish that hangs on a dead Redis is left behind."""
        self._threads.shutdown(wait=False, cancel_futures=True)
        self._app.close()
