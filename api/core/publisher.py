"""The API's side of Redis: publish jobs, and never wait for a Redis that is dead."""

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from typing import Any, TypeVar
from uuid import UUID

from celery import Celery
from kombu.exceptions import OperationalError
from redis.exceptions import RedisError, ResponseError

from shared.core import telemetry
from shared.core.broker import (
    publish_deliveries,
    publish_embedding,
    publish_job,
    publish_picture,
    unreadable,
)
from shared.core.logging import get_logger
from shared.core.metrics import REDIS_ERRORS
from shared.jobs.models import Job

_log = get_logger(__name__)


T = TypeVar("T")


_PATIENCE = 0.2
"""Seconds one request gives Redis. A healthy one answers a publish in about 1 ms."""


_PAUSE = 1.0
"""Seconds during which nobody asks a Redis that has just failed."""


class RedisDown(Exception):
    """Redis did not answer now, or failed within the last second."""


class Circuit:
    """Lets one request in a second find out that Redis is still down; the others skip it."""

    def __init__(self) -> None:
        self._closed_until = 0.0

    @property
    def is_open(self) -> bool:
        """Whether Redis is to be left alone for now."""
        return time.monotonic() < self._closed_until

    async def call(self, work: Awaitable[T]) -> T:
        """Await `work` for at most 0.2 s.

        Raises:
            RedisDown: it failed, or the circuit is open (check `is_open` to save the work).
        """
        try:
            return await asyncio.wait_for(work, _PATIENCE)
        except (RedisError, OperationalError, OSError, TimeoutError) as error:
            if isinstance(error, ResponseError) and str(error).startswith("WRONGTYPE"):
                unreadable("key", error)  # this key alone: Redis is there for all others
                raise RedisDown from error
            self._closed_until = time.monotonic() + _PAUSE
            REDIS_ERRORS.inc()
            _log.warning("redis unavailable", reason=type(error).__name__)
            raise RedisDown from error


class JobPublisher:
    """Sends Celery messages from threads: kombu's publishing blocks."""

    def __init__(self, app: Celery, circuit: Circuit) -> None:
        self._app = app
        self._circuit = circuit
        self._threads = ThreadPoolExecutor(4, thread_name_prefix="publish")

    async def publish(self, job: Job, **headers: Any) -> bool:
        """Hand the job to its queue. False when Redis is down: the dispatcher will do it."""
        if self._circuit.is_open:
            return False
        loop = asyncio.get_running_loop()
        with telemetry.span("publish job", "producer") as span:
            # The message takes its headers from this request's context, into the thread.
            run = copy_context().run
            try:
                await self._circuit.call(
                    loop.run_in_executor(self._threads, run, self._send, job, headers)
                )
            except RedisDown:
                span.fail("Redis is down; the dispatcher will publish it")
                return False
        return True

    def _send(self, job: Job, headers: dict[str, Any]) -> None:
        publish_job(self._app, job.id, job.model, job.lane, **headers)

    async def publish_deliveries(self, delivery_ids: Sequence[UUID]) -> None:
        """Hint that these webhook deliveries are due. Without Redis the dispatcher finds them."""
        if not delivery_ids or self._circuit.is_open:
            return
        loop = asyncio.get_running_loop()
        run = copy_context().run
        sent = loop.run_in_executor(self._threads, run, publish_deliveries, self._app, delivery_ids)
        with contextlib.suppress(RedisDown):
            await self._circuit.call(sent)

    async def ask_for_embedding(
        self, model: str, text: str, reply_key: str, seconds: float
    ) -> None:
        """Ask a CPU worker for a text's embedding, within the seconds that its answer may take.

        Raises:
            RedisDown: the request did not reach the queue.
        """
        await self._ask(publish_embedding, model, text, reply_key, seconds)

    async def ask_for_picture_embedding(
        self, model: str, picture_key: str, reply_key: str, seconds: float
    ) -> None:
        """The same for a picture that lies in Redis.

        Raises:
            RedisDown: the request did not reach the queue.
        """
        await self._ask(publish_picture, model, picture_key, reply_key, seconds)

    async def _ask(
        self,
        publish: Callable[[Celery, str, str, str, float], None],
        model: str,
        asked: str,
        reply_key: str,
        seconds: float,
    ) -> None:
        if self._circuit.is_open:
            raise RedisDown
        loop = asyncio.get_running_loop()
        sent = loop.run_in_executor(
            self._threads, publish, self._app, model, asked, reply_key, seconds
        )
        try:
            await asyncio.wait_for(sent, seconds)
        except (RedisError, OperationalError, OSError, TimeoutError) as error:
            raise RedisDown from error

    def close(self) -> None:
        """Stop the threads; a publish that hangs on a dead Redis is left behind."""
        self._threads.shutdown(wait=False, cancel_futures=True)
        self._app.close()
