"""Sentences to unit vectors, with sentence-transformers, imported late: it takes seconds."""

import threading
from collections.abc import Sequence
from typing import Any

from shared.embeddings import embedding_source
from shared.settings import Settings


class Embedder:
    """The embedding model of this process. Thread-safe: one call at a time."""

    def __init__(self, settings: Settings, former: str | None = None) -> None:
        """`former`: a model that was in use before; the settings no longer know its dimension."""
        if former is not None:
            settings = settings.model_copy(update={"embedding_model": former})
        self.model_name = settings.embedding_model
        self._dimensions = settings.embedding_dimensions if former is None else None
        self._source = embedding_source(settings)
        self._lock = threading.Lock()
        self._model = self._load()

    def embed(self, texts: Sequence[str]) -> list[list[float]]:
        """One unit vector for each text, float32, in order."""
        with self._lock:
            vectors = self._model.encode(
                list(texts), normalize_embeddings=True, show_progress_bar=False
            )
        return [[float(number) for number in vector] for vector in vectors]

    def _load(self) -> Any:
        from sentence_transformers import SentenceTransformer

        model = SentenceTransformer(self._source, device="cpu", trust_remote_code=False)
        size = model.get_embedding_dimension()
        if self._dimensions is not None and size != self._dimensions:
            raise ValueError(
                f"{self.model_name} gives vectors of {size} numbers, "
                f"but DARKROOM_EMBEDDING_DIMENSIONS is {self._dimensions}"
            )
        return model
