"""Give every picture a vector of the image-text model, in the background, newest first.

The table itself says how far it has come, so this can be stopped anywhere, and any leader goes on
with it; it also catches up after a change of the model.
"""

import threading
from collections.abc import Callable
from uuid import UUID

from PIL import Image
from sqlalchemy import Engine
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.orm import Session, sessionmaker

from shared.database import unhurried
from shared.errors import StorageUnavailable
from shared.logging import get_logger
from shared.search import likeness
from shared.search.index import PICTURES
from shared.settings import Settings
from shared.storage import ObjectMissing, Storage
from worker.embedding.loading import Loading, ModelNotLoaded
from worker.embedding.picture_embedder import PictureEmbedder, open_small

log = get_logger(__name__)

_AT_ONCE = 16
_IDLE_SECONDS = 5.0


class PictureKeeper:
    """The thread that does it while its process leads."""

    def __init__(
        self,
        settings: Settings,
        engine: Engine,
        database: sessionmaker[Session],
        storage: Storage,
        *,
        model: Loading[PictureEmbedder],
        leads: Callable[[], bool],
    ) -> None:
        assert settings.picture_model is not None  # noqa: S101 - who makes a keeper has a model
        self._name = settings.picture_model
        self._dimensions = settings.picture_dimensions
        self._engine = engine
        self._database = database
        self._storage = storage
        self._model = model
        self._leads = leads
        self._indexed = False
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._run, name="picture-keeper", daemon=True)

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def close(self) -> None:
        """Stop after the step in progress."""
        self._closing.set()
        self._thread.join(timeout=5)

    def _run(self) -> None:
        while not self._closing.is_set():
            busy = False
            try:
                if self._leads():
                    self.tend_index()
                    busy = self.embed_some() > 0
            except (SQLAlchemyError, StorageUnavailable, ModelNotLoaded) as error:
                log.warning("picture_keeper_waits", error=type(error).__name__)
            except Exception:
                log.exception("picture_keeper_failed")
            if not busy:
                self._closing.wait(_IDLE_SECONDS)

    def tend_index(self) -> None:
        """Make the index of the model in use and drop all others; searches go on meanwhile.

        Raises:
            SQLAlchemyError: the database is away, or busy with another index.
        """
        if self._indexed:
            return
        own = PICTURES.name(self._name, self._dimensions)
        with unhurried(self._engine) as connection:
            known = {row.relname: row.indisvalid for row in connection.execute(PICTURES.list())}
            for name, valid in known.items():
                if name != own or not valid:
                    connection.execute(PICTURES.drop(name))
            connection.execute(PICTURES.create(self._name, self._dimensions, concurrently=True))
        self._indexed = True

    def embed_some(self) -> int:
        """Give some pictures their vectors; returns how many were looked at.

        Raises:
            ModelNotLoaded: the model cannot be loaded.
            StorageUnavailable: S3 is away; nothing of this step was stored.
            SQLAlchemyError: the database is away; likewise.
        """
        with self._database.begin() as session:
            rows = session.execute(likeness.list_unseen(self._name, _AT_ONCE)).all()
        if not rows:
            return 0
        pictures: dict[UUID, Image.Image | None] = {
            image_id: self._read(key) for image_id, key in rows
        }
        there = {key: picture for key, picture in pictures.items() if picture is not None}
        vectors = self._model.wait(None).embed(list(there.values())) if there else []
        seen = dict(zip(there, vectors, strict=True))
        with self._database.begin() as session:
            for image_id in pictures:
                session.execute(likeness.store_vector(image_id, self._name, seen.get(image_id)))
        log.info("pictures_embedded", count=len(there), unreadable=len(pictures) - len(there))
        return len(rows)

    def _read(self, key: str) -> Image.Image | None:
        try:
            return open_small(self._storage.get(key).body)
        except (ObjectMissing, OSError):
            return None
