"""Embed the texts of searches: answer each request through Redis, and keep the vector there."""

import base64
import hashlib
import json
import struct
import threading
from collections.abc import Sequence

import redis
from celery import Celery

from shared.logging import get_logger
from shared.queue import names
from shared.settings import Settings
from worker.embedder import Embedder

log = get_logger(__name__)

_KEPT_SECONDS = 7 * 24 * 3600
_REPLY_SECONDS = 30
_WAIT_FOR_MODEL = 1.5
"""Shorter than the API waits, so that it learns why there is no vector."""


class EmbeddingModels:
    """The embedding models of this process, each loaded once, on a thread of its own.

    Normally one: that of the settings. Prompts that still have vectors of another need it, too,
    until they are embedded anew.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._lock = threading.Lock()
        self._slots: dict[str, _Slot] = {}

    def load(self, model: str | None = None) -> "_Slot":
        """Begin to load a model, by default that of the settings; does not wait."""
        name = model or self._settings.embedding_model
        with self._lock:
            slot = self._slots.get(name)
            if slot is None or slot.failed:
                slot = self._slots[name] = _Slot(self._settings, name)
            return slot

    def get(self, model: str | None = None, seconds: float | None = None) -> Embedder:
        """The model, when it is loaded.

        Raises:
            ModelNotLoaded: it cannot be, or is not after `seconds`; it says which.
        """
        return self.load(model).wait(seconds)


class ModelNotLoaded(Exception):
    """There is no embedding for now; the text says why and may reach a client."""


class _Slot:
    """A model that is being loaded, is loaded, or cannot be."""

    def __init__(self, settings: Settings, name: str) -> None:
        self._settings = settings
        self._name = name
        self._done = threading.Event()
        self._embedder: Embedder | None = None
        threading.Thread(target=self._load, name=f"load-{name}", daemon=True).start()

    @property
    def failed(self) -> bool:
        """Loading has ended without a model."""
        return self._done.is_set() and self._embedder is None

    def wait(self, seconds: float | None) -> Embedder:
        """See `EmbeddingModels.get`."""
        if not self._done.wait(seconds):
            raise ModelNotLoaded("The CPU worker is still loading the embedding model.")
        if self._embedder is None:
            raise ModelNotLoaded(f"The CPU worker cannot load the embedding model {self._name}.")
        return self._embedder

    def _load(self) -> None:
        try:
            former = None if self._name == self._settings.embedding_model else self._name
            embedder = Embedder(self._settings, former)
            embedder.embed(["warm"])
            self._embedder = embedder
            log.info("embedding_model_ready", model=self._name)
        except Exception:  # whatever a library raises, queries must be told
            log.exception("embedding_model_failed", model=self._name)
        finally:
            self._done.set()


def register_embed(app: Celery, models: EmbeddingModels, client: "redis.Redis") -> None:
    """The task of CPU workers: embed one text for one waiting request."""

    @app.task(name=names.EMBED_TASK)
    def embed(model: str, text: str, reply_key: str) -> None:
        answer_request(models, client, model, text, reply_key)


def answer_request(
    models: EmbeddingModels, client: "redis.Redis", model: str, text: str, reply_key: str
) -> None:
    """Push `{"vector": …}`, or `{"reason": …}` where there is none, to the list `reply_key`."""
    with client.pipeline(transaction=False) as pipeline:
        try:
            [vector] = models.get(model, _WAIT_FOR_MODEL).embed([text])
            packed = pack_vector(vector)
            digest = hashlib.sha256(text.encode()).hexdigest()
            pipeline.set(names.embedding_key(model, digest), packed, ex=_KEPT_SECONDS)
            reply = {"vector": packed}
        except ModelNotLoaded as reason:
            reply = {"reason": str(reason)}
        pipeline.rpush(reply_key, json.dumps(reply))
        pipeline.expire(reply_key, _REPLY_SECONDS)
        pipeline.execute()


def pack_vector(vector: Sequence[float]) -> str:
    """Little-endian float32 in base64: what `api.search.embedding` unpacks."""
    return base64.b64encode(struct.pack(f"<{len(vector)}f", *vector)).decode()
