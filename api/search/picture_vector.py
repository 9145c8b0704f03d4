"""The vector of a picture that is searched with: cached in Redis, or made by a CPU worker."""

import base64
import contextlib
import hashlib
from uuid import uuid4

from api.deps import Resources
from api.publishing import RedisDown
from api.search.embedding import PATIENCE, cached_or_made, read_reply
from shared.queue import names
from shared.search.fusion import QueryVector

FIT_SIDE = 512
"""Pixels of a side: more than the largest image-text models look at, and small in Redis."""
_KEPT_SECONDS = 30


async def vector_of_picture(resources: Resources, model: str, data: bytes) -> QueryVector:
    """What the image-text model sees in a small picture that was decoded, or made, by Darkroom.

    Raises:
        Problem: 503 when Redis or the CPU workers cannot say, with the reason.
    """
    digest = hashlib.sha256(data).hexdigest()
    return await cached_or_made(resources, model, digest, lambda: _ask(resources, model, data))


async def _ask(resources: Resources, model: str, data: bytes) -> str:
    request = uuid4().hex
    key, reply_key = names.picture_key(request), names.embedded_key(request)
    await resources.circuit.call(resources.redis.set(key, base64.b64encode(data), ex=_KEPT_SECONDS))
    try:
        await resources.publisher.ask_for_picture_embedding(model, key, reply_key, PATIENCE)
        return await read_reply(resources, reply_key)
    finally:
        with contextlib.suppress(RedisDown):  # it expires anyway
            await resources.circuit.call(resources.redis.delete(key))
