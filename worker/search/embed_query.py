"""Embed what searches ask for: answer each request through Redis, and keep the vector there."""

import base64
import hashlib
import json
import struct
import threading
from collections.abc import Callable, Sequence

import redis
from celery import Celery

from shared.core import broker
from shared.core.broker import unreadable
from shared.core.logging import get_logger
from shared.core.settings import Settings
from worker.search.embedders import Embedder, ImageEmbedder, Loading, ModelNotLoaded, open_small

log = get_logger(__name__)
_KEPT_SECONDS = 7 * 24 * 3600
_REPLY_SECONDS = 30

_WAIT_FOR_MODEL = 1.5
"""Shorter than the API waits, so that it learns why there is no vector."""


class EmbeddingModels:
    """The embedding models of this process, each loaded once, on a thread of its own.

    Normally one: that of the settings. Prompts that still have vectors of another need it, too,
    until they are embedded again.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._lock = threading.Lock()
        self._slots: dict[str, Loading[Embedder]] = {}

    def load(self, model: str | None = None) -> Loading[Embedder]:
        """Begin to load a model, by default that of the settings; does not wait."""
        name = model or self._settings.embedding_model
        with self._lock:
            slot = self._slots.get(name)
            if slot is None:
                slot = self._slots[name] = Loading(name, lambda: self._make(name))
            return slot

    def get(self, model: str | None = None, seconds: float | None = None) -> Embedder:
        """The model, when it is loaded.

        Raises:
            ModelNotLoaded: it cannot be, or is not after `seconds`; it says which.
        """
        return self.load(model).wait(seconds)

    def _make(self, name: str) -> Embedder:
        # A query is one short sentence: one thread takes 11 ms for it. Two took 77 where another
        # process had one of the cores, because each waits for the other.
        import torch

        torch.set_num_threads(1)
        former = None if name == self._settings.embedding_model else name
        embedder = Embedder(self._settings, former)
        embedder.embed(["warm"])
        return embedder


def register_embed(
    app: Celery,
    models: EmbeddingModels,
    image_embedding_model: Loading[ImageEmbedder] | None,
    client: "redis.Redis",
) -> None:
    """The tasks of CPU workers: embed one text, or one image, for one waiting request."""

    @app.task(name=broker.EMBED_TASK)
    def embed(model: str, text: str, reply_key: str) -> None:
        digest = hashlib.sha256(text.encode()).hexdigest()

        def make() -> list[float]:
            [vector] = models.get(model, _WAIT_FOR_MODEL).embed([text])
            return vector

        answer_request(client, model, digest, reply_key, make)

    @app.task(name=broker.EMBED_IMAGE_TASK)
    def embed_image(model: str, image_key: str, reply_key: str) -> None:
        packed = client.get(image_key)
        if packed is None:  # the request has given up
            return
        try:
            data = base64.b64decode(packed, validate=True)
        except ValueError as error:
            unreadable("image", error)
            return

        def make() -> list[float]:
            if image_embedding_model is None:
                raise ModelNotLoaded("The CPU worker has no model for images.")
            [vector] = image_embedding_model.wait(_WAIT_FOR_MODEL).embed([open_small(data)])
            return vector

        answer_request(client, model, hashlib.sha256(data).hexdigest(), reply_key, make)


def answer_request(
    client: "redis.Redis", model: str, digest: str, reply_key: str, make: Callable[[], list[float]]
) -> None:
    """Push `{"vector": …}`, or `{"reason": …}` where there is none, to the list `reply_key`."""
    with client.pipeline(transaction=False) as pipeline:
        try:
            packed = pack_vector(make())
            pipeline.set(broker.embedding_key(model, digest), packed, ex=_KEPT_SECONDS)
            reply = {"vector": packed}
        except ModelNotLoaded as reason:
            reply = {"reason": str(reason)}
        except Exception:  # whatever a library raises, the request must not wait in vain
            log.exception("embedding_failed", model=model)
            reply = {"reason": "The CPU worker failed to embed it; its log says why."}
        pipeline.rpush(reply_key, json.dumps(reply))
        pipeline.expire(reply_key, _REPLY_SECONDS)
        pipeline.execute()


def pack_vector(vector: Sequence[float]) -> str:
    """Little-endian float32 in base64: what `api.search.embedding` unpacks."""
    return base64.b64encode(struct.pack(f"<{len(vector)}f", *vector)).decode()
