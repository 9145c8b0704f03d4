"""Keep embeddings current: indexes, prompts after a change of model, and images.

The prompts themselves say how far it has come: each has its model's name beside its vector. So it
can be stopped anywhere, and any leader continues it. Searches ask in every model that prompts
have, so none is lost meanwhile.
"""

import time
from collections.abc import Callable
from uuid import UUID

from PIL import Image
from sqlalchemy import Engine
from sqlalchemy.orm import Session, sessionmaker

from shared.core.database import no_statement_timeout
from shared.core.logging import get_logger
from shared.core.settings import Settings
from shared.core.storage import ObjectMissing, Storage
from shared.search import embeddings, image_similarity
from shared.search.embeddings import IMAGES, PROMPTS
from worker.core.loop import OUTAGES, LeaderLoop
from worker.search.embed_query import EmbeddingModels
from worker.search.embedders import ImageEmbedder, Loading, ModelNotLoaded, open_small

log = get_logger(__name__)

_AT_ONCE = 64
"""Prompts read and stored in one step: half a second of one core."""

_IN_A_ROW = 8
"""Prompts embedded before a query that waits for the model gets its turn."""

_LOCK_WAIT_SECONDS = 0.005
"""Long enough for a thread that waits for the model to take it."""

_IDLE_SECONDS = 20.0


class PromptIndexer(LeaderLoop):
    """Keeps the vectors of prompts and their index current while its process leads."""

    def __init__(
        self,
        settings: Settings,
        engine: Engine,
        database: sessionmaker[Session],
        models: EmbeddingModels,
        is_leader: Callable[[], bool],
    ) -> None:
        super().__init__("prompt-indexer", _IDLE_SECONDS, is_leader)
        self._model = settings.embedding_model
        self._dimensions = settings.embedding_dimensions
        self._engine = engine
        self._database = database
        self._models = models

    def lead(self) -> float:
        """Make and drop indexes, then embed some prompts again if any need it."""
        self.tend_indexes()
        return 0.0 if self.embed_some() else _IDLE_SECONDS

    def tend_indexes(self) -> None:
        """Make the index of the model in use; drop those of models that no prompt is of.

        Reads and writes continue while an index is made.

        Raises:
            SQLAlchemyError: the database is unavailable, or busy with another index.
        """
        wanted = {PROMPTS.name(self._model, self._dimensions)}
        with self._database.begin() as session:
            wanted |= {PROMPTS.name(*row) for row in session.execute(embeddings.list_models())}
            known = {row.relname: row.indisvalid for row in session.execute(PROMPTS.list())}
        broken = {name for name, valid in known.items() if not valid}
        own = PROMPTS.name(self._model, self._dimensions)
        if own in known and not broken and not known.keys() - wanted:
            return
        with no_statement_timeout(self._engine) as connection:
            for name in (known.keys() - wanted) | broken:
                connection.execute(PROMPTS.drop(name))
                log.info("embedding_index_dropped", index=name)
            if own not in known or own in broken:
                connection.execute(PROMPTS.create(self._model, self._dimensions, concurrently=True))
                log.info("embedding_index_made", index=own)

    def embed_some(self) -> int:
        """Give some prompts of a former model vectors of the one in use; returns how many.

        Raises:
            ModelNotLoaded: the model in use cannot be loaded.
            SQLAlchemyError: the database is unavailable; nothing of this step was stored.
        """
        with self._database.begin() as session:
            models = [name for name, _ in session.execute(embeddings.list_models())]
            former = next((name for name in models if name != self._model), None)
            if former is None:
                return 0
            rows = session.execute(embeddings.list_outdated(former, _AT_ONCE)).all()
        embedder = self._models.get()
        vectors: list[list[float]] = []
        for start in range(0, len(rows), _IN_A_ROW):
            portion = rows[start : start + _IN_A_ROW]
            vectors += embedder.embed([row.text for row in portion])
            self.pause(_LOCK_WAIT_SECONDS)
        with self._database.begin() as session:
            for (prompt_id, _), vector in zip(rows, vectors, strict=True):
                session.execute(embeddings.store_embedding(prompt_id, former, self._model, vector))
        log.info("prompts_embedded_anew", count=len(rows), former=former)
        return len(rows)


# The table itself says which have one, so this can be stopped anywhere, and any leader continues
# with it; it also catches up after a change of the model. Images are gone through in windows,
# so that no look at the database takes long; the newest window is looked at often, all others as
# they allow.

_IMAGES_AT_ONCE = 16

_WINDOW = 1_000
"""Images that one look at the database goes through."""

_ANEW_AFTER = 1_000
"""Images embedded before the newest are looked at again, while there is much to catch up with."""

_IMAGES_IDLE_SECONDS = 5.0

_SHARE = 0.05
"""Of the time spent looking among all images, at most, where none is without a vector."""


class ImageIndexer(LeaderLoop):
    """Keeps the vectors of images and their index current while its process leads."""

    passing = (*OUTAGES, ModelNotLoaded)

    def __init__(
        self,
        settings: Settings,
        engine: Engine,
        database: sessionmaker[Session],
        storage: Storage,
        *,
        model: Loading[ImageEmbedder],
        is_leader: Callable[[], bool],
    ) -> None:
        super().__init__("image-indexer", _IMAGES_IDLE_SECONDS, is_leader)
        assert settings.image_embedding_model is not None  # noqa: S101 - an indexer is made with a model
        self._name = settings.image_embedding_model
        self._dimensions = settings.image_embedding_dimensions
        self._engine = engine
        self._database = database
        self._storage = storage
        self._model = model
        self._indexed = False
        self._all_due = 0.0

    def lead(self) -> float:
        """Look at the newest images, and among all of them as often as that takes little time."""
        self.tend_index()
        started = time.monotonic()
        among_all = started >= self._all_due
        embedded = self.go_through(among_all=among_all)
        if embedded >= _ANEW_AFTER:
            return 0.0
        if among_all and not embedded:
            ended = time.monotonic()
            self._all_due = ended + (ended - started) / _SHARE
        return _IMAGES_IDLE_SECONDS

    def tend_index(self) -> None:
        """Make the index of the model in use and drop all others; searches continue meanwhile.

        Raises:
            SQLAlchemyError: the database is unavailable, or busy with another index.
        """
        if self._indexed:
            return
        own = IMAGES.name(self._name, self._dimensions)
        with no_statement_timeout(self._engine) as connection:
            known = {row.relname: row.indisvalid for row in connection.execute(IMAGES.list())}
            for name, valid in known.items():
                if name != own or not valid:
                    connection.execute(IMAGES.drop(name))
            connection.execute(IMAGES.create(self._name, self._dimensions, concurrently=True))
        self._indexed = True

    def go_through(self, *, among_all: bool) -> int:
        """Give images their vectors, the newest first; returns how many were looked at.

        Ends with the oldest, with the first window unless it is to look `among_all`, or after many:
        there may be newer ones by then, to start again with.

        Raises:
            ModelNotLoaded: the model cannot be loaded.
            StorageUnavailable: S3 is unavailable; nothing of the last step was stored.
            SQLAlchemyError: the database is unavailable; likewise.
        """
        before: UUID | None = None
        embedded = 0
        while embedded < _ANEW_AFTER and self._is_leader() and not self.is_closing:
            with self._database.begin() as session:
                until = session.scalars(
                    image_similarity.end_of_window(before, _WINDOW)
                ).one_or_none()
                unseen = image_similarity.list_unseen(self._name, _IMAGES_AT_ONCE, before, until)
                rows = [(image_id, key) for image_id, key in session.execute(unseen)]
            if rows:
                self._embed(rows)
                embedded += len(rows)
            if len(rows) < _IMAGES_AT_ONCE:  # nothing is left of this window
                if until is None or not among_all:
                    break
                before = until
        return embedded

    def _embed(self, rows: list[tuple[UUID, str]]) -> None:
        """`rows` are (id, key of the thumbnail)."""
        images = {image_id: self._read(key) for image_id, key in rows}
        there = {key: image for key, image in images.items() if image is not None}
        vectors = self._model.wait(None).embed(list(there.values())) if there else []
        seen = dict(zip(there, vectors, strict=True))
        with self._database.begin() as session:
            for image_id in images:
                session.execute(
                    image_similarity.store_vector(image_id, self._name, seen.get(image_id))
                )
        log.info("images_embedded", count=len(there), unreadable=len(images) - len(there))

    def _read(self, key: str) -> Image.Image | None:
        try:
            return open_small(self._storage.get(key).body)
        except (ObjectMissing, OSError):
            return None
