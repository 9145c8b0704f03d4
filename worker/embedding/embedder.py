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
        """One unit vector for each text, float32, in order; zeros where it knows no part of it.

        All that is unknown to a model looks the same to it, so that would be alike.
        """
        with self._lock:
            known = [self._known_parts(text) for text in texts]
            vectors = self._model.encode(known, normalize_embeddings=True, show_progress_bar=False)
        return [
            [float(number) if said else 0.0 for number in vector]
            for vector, said in zip(vectors, known, strict=True)
        ]

    def _known_parts(self, text: str) -> str:
        tokenizer = self._model.tokenizer
        unknown = getattr(tokenizer, "unk_token_id", None)
        if text.isascii() or unknown is None or not getattr(tokenizer, "is_fast", False):
            return text
        tokens = tokenizer(
            text, add_special_tokens=False, return_offsets_mapping=True, truncation=False
        )
        places = zip(tokens["input_ids"], tokens["offset_mapping"], strict=True)
        gaps = [place for token, place in places if token == unknown]
        if len(gaps) == len(tokens["input_ids"]):
            return ""
        for start, end in reversed(gaps):
            text = f"{text[:start]} {text[end:]}"
        return text

    def _load(self) -> Any:
        from sentence_transformers import SentenceTransformer

        model = SentenceTransformer(
            self._source,
            device="cpu",
            trust_remote_code=False,
            model_kwargs={"use_safetensors": True},  # a pickle would run what it holds
        )
        size = model.get_embedding_dimension()
        if self._dimensions is not None and size != self._dimensions:
            raise ValueError(
                f"{self.model_name} gives vectors of {size} numbers, "
                f"but DARKROOM_EMBEDDING_DIMENSIONS is {self._dimensions}"
            )
        return model
