"""Vectors of queries and images: remembered, cached in Redis, made by a CPU worker."""

import asyncio
import base64
import contextlib
import hashlib
import math
import struct
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Collection, Iterable
from uuid import uuid4

from api.context import Resources
from api.core.errors import Problem
from api.core.metrics import SEARCH_SECONDS
from api.core.publisher import RedisDown
from api.search.cursor import model_digest
from shared.core import broker
from shared.core.broker import read_object, unreadable
from shared.core.logging import get_logger
from shared.search import embeddings
from shared.search.ranking import QueryVector

_log = get_logger(__name__)

REPLY_TIMEOUT = 2.0
"""Seconds that a request waits for its vector. A worker that is there takes 10 to 20 ms."""

_REMEMBERED = 2048
"""Vectors per process: 8 kB each as text."""

_MODELS_SECONDS = 10.0
_REFUSED_SECONDS = 5.0
_RETRY_AFTER = "5"


class QueryVectors:
    """The vectors of a process's queries."""

    def __init__(self) -> None:
        self._known: OrderedDict[tuple[str, str], QueryVector] = OrderedDict()
        self._running: dict[tuple[str, str], asyncio.Task[QueryVector]] = {}
        self._models: dict[str, int] = {}
        """The dimensions of each."""
        self._models_until = 0.0
        self._refused_until: dict[str, float] = {}

    def remembered(self, text: str, only: Collection[bytes] = ()) -> tuple[QueryVector, ...] | None:
        """As `of`, if this process has all of it in memory."""
        if time.monotonic() >= self._models_until:
            return None
        digest = _digest(text)
        known = [self._known.get((model, digest)) for model in _those(self._models, only)]
        vectors = tuple(vector for vector in known if vector is not None)
        return vectors if len(vectors) == len(known) else None

    async def of(
        self, resources: Resources, text: str, only: Collection[bytes] = ()
    ) -> tuple[QueryVector, ...]:
        """The text in the space of every model that prompts have vectors of; normally one.

        While prompts are being re-embedded, one of two will do. A later page must be scored as the
        first one was, or it would lose its place: it names `only` the models of that one
        (`cursor.model_digest`), and needs them all.

        Raises:
            Problem: 503 when not one of them can be had, or not all, with the reason.
        """
        with SEARCH_SECONDS.labels("embedding").time():
            models = _those(await self._models_in_use(resources), only)
            if not only:
                now = time.monotonic()
                # A model that has just failed is left out while there is another.
                willing = [model for model in models if self._refused_until.get(model, 0.0) <= now]
                models = willing or models
            lookups = (self._vector(resources, model, text) for model in models)
            answers = await asyncio.gather(*lookups, return_exceptions=True)
        vectors = tuple(answer for answer in answers if isinstance(answer, QueryVector))
        for model, answer in zip(models, answers, strict=True):
            if isinstance(answer, Problem):
                self._refused_until[model] = time.monotonic() + _REFUSED_SECONDS
            if isinstance(answer, BaseException):
                half_will_do = vectors and isinstance(answer, Problem) and not only
                if not half_will_do:
                    raise answer
        return vectors

    async def _models_in_use(self, resources: Resources) -> dict[str, int]:
        if time.monotonic() >= self._models_until:
            async with resources.transaction() as session:
                rows = (await session.execute(embeddings.list_models())).all()
            self._models = {row.name: row.dimensions for row in rows}
            # A system without prompts gets its first ones soon.
            self._models_until = time.monotonic() + (_MODELS_SECONDS if rows else 0.0)
        return self._models

    async def _vector(self, resources: Resources, model: str, text: str) -> QueryVector:
        key = (model, _digest(text))
        known = self._known.get(key)
        if known is not None:
            self._known.move_to_end(key)
            return known
        task = self._running.get(key)
        if task is None:
            # One request for all that wait for the same text; it outlives a client that leaves.
            size = self._models.get(model)
            task = asyncio.create_task(_fetch(resources, model, key[1], text, size))
            self._running[key] = task
            task.add_done_callback(lambda done: self._remember(key, done))
        return await asyncio.shield(task)

    def _remember(self, key: tuple[str, str], done: "asyncio.Task[QueryVector]") -> None:
        self._running.pop(key, None)
        if done.cancelled() or done.exception() is not None:
            return
        self._known[key] = done.result()
        while len(self._known) > _REMEMBERED:
            self._known.popitem(last=False)


def _those(models: Iterable[str], only: Collection[bytes]) -> list[str]:
    """Those that are named; all of them once none of these is left."""
    named = [model for model in models if model_digest(model) in only]
    return named or list(models)


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


async def _fetch(
    resources: Resources, model: str, digest: str, text: str, dimensions: int | None
) -> QueryVector:
    return await cached_or_made(
        resources, model, digest, lambda: _ask(resources, model, text), dimensions
    )


async def cached_or_made(
    resources: Resources,
    model: str,
    digest: str,
    make: Callable[[], Awaitable[str]],
    dimensions: int | None = None,
) -> QueryVector:
    """The cached vector, if it can be read; else one that a CPU worker makes and caches.

    Raises:
        Problem: 503 when it cannot be had, with the reason.
    """
    key = broker.embedding_key(model, digest)
    try:
        packed = await resources.circuit_breaker.call(resources.redis.get, key)
        vector = None if packed is None else unpack(model, packed, dimensions)
        vector = vector or unpack(model, await make(), dimensions)
    except RedisDown:
        raise _redis_is_away() from None
    if vector is None:
        raise _unavailable("The answer of the CPU worker cannot be read.")
    return vector


async def _ask(resources: Resources, model: str, text: str) -> str:
    reply_key = broker.embedded_key(uuid4().hex)
    await resources.publisher.ask_for_embedding(
        broker.EMBED_TASK, model, text, reply_key=reply_key, seconds=REPLY_TIMEOUT
    )
    return await read_reply(resources, reply_key)


async def read_reply(resources: Resources, reply_key: str) -> str:
    """The packed vector that a CPU worker was asked for.

    Raises:
        Problem: 503: nobody answered in time, or there is no vector; with the reason.
        RedisDown: Redis is unavailable.
    """
    try:
        reply = await resources.blocking_redis.blpop([reply_key], timeout=REPLY_TIMEOUT)
    except broker.REDIS_AWAY as error:
        raise RedisDown from error
    if reply is None:
        raise _unavailable(f"No CPU worker answered within {REPLY_TIMEOUT:g} s.")
    answer = read_object("embedding", reply[1]) or {}
    if "vector" not in answer:
        reason = answer.get("reason", "The answer of the CPU worker cannot be read.")
        raise _unavailable(str(reason))
    return str(answer["vector"])


def unpack(model: str, packed: str | bytes, dimensions: int | None = None) -> QueryVector | None:
    """What a CPU worker packed: little-endian float32 in base64; None for anything else."""
    try:
        raw = base64.b64decode(packed, validate=True)
        numbers = struct.unpack(f"<{len(raw) // 4}f", raw)
        if not numbers or len(numbers) != (dimensions or len(numbers)):
            raise ValueError(f"{len(numbers)} dimensions")
        if not all(map(math.isfinite, numbers)):
            raise ValueError("not finite")
    except (ValueError, struct.error) as error:
        unreadable("embedding", error)
        return None
    return QueryVector(model, len(numbers), embeddings.to_text(numbers))


def _redis_is_away() -> Problem:
    """503: nobody can be asked."""
    return _unavailable("Redis, through which workers are asked, is not available.")


def _unavailable(reason: str) -> Problem:
    _log.warning("embedding_unavailable", reason=reason)
    return Problem("embedding_unavailable", reason, headers={"Retry-After": _RETRY_AFTER})


FIT_SIDE = 512
"""Pixels of a side: more than the largest image-text models look at, and small in Redis."""

_KEPT_SECONDS = 30


async def vector_of_image(resources: Resources, model: str, data: bytes) -> QueryVector:
    """What the image-text model sees in a small image that was decoded, or made, by Darkroom.

    Raises:
        Problem: 503 when Redis or the CPU workers cannot say, with the reason.
    """
    digest = hashlib.sha256(data).hexdigest()
    return await cached_or_made(
        resources, model, digest, lambda: _ask_for_image(resources, model, data)
    )


async def _ask_for_image(resources: Resources, model: str, data: bytes) -> str:
    request = uuid4().hex
    key, reply_key = broker.image_key(request), broker.embedded_key(request)
    await resources.circuit_breaker.call(
        resources.redis.set, key, base64.b64encode(data), ex=_KEPT_SECONDS
    )
    try:
        await resources.publisher.ask_for_embedding(
            broker.EMBED_IMAGE_TASK, model, key, reply_key=reply_key, seconds=REPLY_TIMEOUT
        )
        return await read_reply(resources, reply_key)
    finally:
        with contextlib.suppress(RedisDown):  # it expires anyway
            await resources.circuit_breaker.call(resources.redis.delete, key)
