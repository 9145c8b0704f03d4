"""Give every picture a vector of the image-text model, in the background, newest first.

The table itself says which have one, so this can be stopped anywhere, and any leader goes on with
it; it also catches up after a change of the model. Pictures are gone through in windows, so that no
look at the ledger takes long; the newest window is looked at often, all others as they allow.
"""

import threading
import time
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
_WINDOW = 1_000
"""Pictures that one look at the ledger goes through."""
_ANEW_AFTER = 1_000
"""Pictures embedded before the newest are looked at again, while there is much to catch up with."""
_IDLE_SECONDS = 5.0
_SHARE = 0.05
"""Of the time spent looking among all pictures, at most, where none is without a vector."""


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
        self._all_due = 0.0
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
            rest = _IDLE_SECONDS
            try:
                if self._leads():
                    self.tend_index()
                    started = time.monotonic()
                    among_all = started >= self._all_due
                    embedded = self.go_through(among_all=among_all)
                    if embedded >= _ANEW_AFTER:
                        rest = 0.0
                    elif among_all and not embedded:
                        ended = time.monotonic()
                        self._all_due = ended + (ended - started) / _SHARE
            except (SQLAlchemyError, StorageUnavailable, ModelNotLoaded) as error:
                log.warning("picture_keeper_waits", error=type(error).__name__)
            except Exception:
                log.exception("picture_keeper_failed")
            self._closing.wait(rest)

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

    def go_through(self, *, among_all: bool) -> int:
        """Give pictures their vectors, the newest first; returns how many were looked at.

        Ends with the oldest, with the first window unless it is to look `among_all`, or after many:
        there may be newer ones by then, to begin anew with.

        Raises:
            ModelNotLoaded: the model cannot be loaded.
            StorageUnavailable: S3 is away; nothing of the last step was stored.
            SQLAlchemyError: the database is away; likewise.
        """
        before: UUID | None = None
        embedded = 0
        while embedded < _ANEW_AFTER and self._leads() and not self._closing.is_set():
            with self._database.begin() as session:
                until = session.scalars(likeness.end_of_window(before, _WINDOW)).one_or_none()
                unseen = likeness.list_unseen(self._name, _AT_ONCE, before, until)
                rows = [(image_id, key) for image_id, key in session.execute(unseen)]
            if rows:
                self._embed(rows)
                embedded += len(rows)
            if len(rows) < _AT_ONCE:  # nothing is left of this window
                if until is None or not among_all:
                    break
                before = until
        return embedded

    def _embed(self, rows: list[tuple[UUID, str]]) -> None:
        """`rows` are (id, key of the thumbnail)."""
        pictures = {image_id: self._read(key) for image_id, key in rows}
        there = {key: picture for key, picture in pictures.items() if picture is not None}
        vectors = self._model.wait(None).embed(list(there.values())) if there else []
        seen = dict(zip(there, vectors, strict=True))
        with self._database.begin() as session:
            for image_id in pictures:
                session.execute(likeness.store_vector(image_id, self._name, seen.get(image_id)))
        log.info("pictures_embedded", count=len(there), unreadable=len(pictures) - len(there))

    def _read(self, key: str) -> Image.Image | None:
        try:
            return open_small(self._storage.get(key).body)
        except (ObjectMissing, OSError):
            return None
