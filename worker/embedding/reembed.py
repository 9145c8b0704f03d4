"""Tend the embedding models: make their indexes, embed prompts anew after a change of model.

The prompts themselves say how far it has come: each has its model's name beside its vector. So it
can be stopped anywhere, and any leader goes on with it. Searches ask in every model that prompts
have, so none is lost meanwhile.
"""

import threading
from collections.abc import Callable

from sqlalchemy import Engine
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.orm import Session, sessionmaker

from shared.database import unhurried
from shared.logging import get_logger
from shared.search import embeddings
from shared.search.index import PROMPTS
from shared.settings import Settings
from worker.embedding.embed_query import EmbeddingModels

log = get_logger(__name__)

_AT_ONCE = 64
"""Prompts read and stored in one step: half a second of one core."""
_IN_A_ROW = 8
"""Prompts embedded before a query that waits for the model gets its turn."""
_TURN_SECONDS = 0.005
"""Long enough for a thread that waits for the model to take it."""
_IDLE_SECONDS = 20.0


class EmbeddingKeeper:
    """The thread that tends them while its process leads."""

    def __init__(
        self,
        settings: Settings,
        engine: Engine,
        database: sessionmaker[Session],
        models: EmbeddingModels,
        leads: Callable[[], bool],
    ) -> None:
        self._model = settings.embedding_model
        self._dimensions = settings.embedding_dimensions
        self._engine = engine
        self._database = database
        self._models = models
        self._leads = leads
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._run, name="embedding-keeper", daemon=True)

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def close(self) -> None:
        """Stop after the step in progress; one that makes an index is left to the database."""
        self._closing.set()
        self._thread.join(timeout=5)

    def _run(self) -> None:
        while not self._closing.is_set():
            busy = False
            try:
                if self._leads():
                    self.tend_indexes()
                    busy = self.embed_some() > 0
            except SQLAlchemyError as error:
                log.warning("embedding_keeper_waits", error=type(error).__name__)
            except Exception:
                log.exception("embedding_keeper_failed")
            if not busy:
                self._closing.wait(_IDLE_SECONDS)

    def tend_indexes(self) -> None:
        """Make the index of the model in use; drop those of models that no prompt is of.

        Reads and writes go on while an index is made.

        Raises:
            SQLAlchemyError: the database is away, or busy with another index.
        """
        wanted = {PROMPTS.name(self._model, self._dimensions)}
        with self._database.begin() as session:
            wanted |= {PROMPTS.name(*row) for row in session.execute(embeddings.list_models())}
            known = {row.relname: row.indisvalid for row in session.execute(PROMPTS.list())}
        broken = {name for name, valid in known.items() if not valid}
        own = PROMPTS.name(self._model, self._dimensions)
        if own in known and not broken and not known.keys() - wanted:
            return
        with unhurried(self._engine) as connection:
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
            SQLAlchemyError: the database is away; nothing of this step was stored.
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
            self._closing.wait(_TURN_SECONDS)
        with self._database.begin() as session:
            for (prompt_id, _), vector in zip(rows, vectors, strict=True):
                session.execute(embeddings.store_embedding(prompt_id, former, self._model, vector))
        log.info("prompts_embedded_anew", count=len(rows), former=former)
        return len(rows)
