"""What a job needs beside the model: its prompt's row, and its initial image."""

import io
import threading
from collections import OrderedDict
from uuid import UUID

import numpy as np
from PIL import Image, ImageOps
from sqlalchemy.orm import Session, sessionmaker

from shared.core.database import one_statement
from shared.core.errors import InvalidInput
from shared.core.storage import ObjectMissing, Storage
from shared.images import queries as image_queries
from shared.jobs.models import Job
from worker.search.embedders import Embedder

_REMEMBERED = 4096


_Key = tuple[UUID, bytes]


class PromptRows:
    """The prompts that this process has lately seen on record: many jobs vary one prompt."""

    def __init__(self, embedder: Embedder) -> None:
        self.embedder = embedder
        self._seen: OrderedDict[_Key, None] = OrderedDict()
        self._lock = threading.Lock()

    def of(self, job: Job) -> "PromptRow":
        """The job's."""
        return PromptRow(self, job)

    def __contains__(self, key: _Key) -> bool:
        with self._lock:
            return key in self._seen

    def remember(self, key: _Key) -> None:
        """It is on record now. Should it be deleted, the next commit finds out."""
        with self._lock:
            self._seen[key] = None
            self._seen.move_to_end(key)
            while len(self._seen) > _REMEMBERED:
                self._seen.popitem(last=False)


class PromptRow:
    """The row of one job's prompt. Embeds at most once, however often a commit is tried."""

    def __init__(self, rows: PromptRows, job: Job) -> None:
        self._rows = rows
        self._job = job
        self._key = (job.tenant_id, image_queries.text_sha256(job.prompt))
        self._known = self._key in rows
        self._embedding: list[float] | None = None

    def look_up(self, database: sessionmaker[Session]) -> None:
        """Embed the prompt if the tenant has never used it; does nothing the second time.

        Raises:
            SQLAlchemyError: Postgres is away.
        """
        if self._known or self._embedding is not None:
            return
        statement = image_queries.find_prompt(self._job.tenant_id, self._job.prompt)
        with one_statement(database) as session:
            self._known = session.scalars(statement).one_or_none() is not None
        if not self._known:
            self._embed()

    def committed(self) -> None:
        """A job that names it was committed, so it is on record."""
        self._rows.remember(self._key)

    @property
    def known(self) -> bool:
        """Whether it was on record a while ago."""
        return self._known

    @property
    def sha256(self) -> bytes:
        """What its row is found by."""
        return self._key[1]

    def ensure(self, session: Session) -> None:
        """Have it on record in the transaction, and until its end."""
        embedding = self._embedding or self._embed()
        session.execute(
            image_queries.ensure_prompt(
                self._job.tenant_id, self._job.prompt, embedding, self._rows.embedder.model_name
            )
        )

    def _embed(self) -> list[float]:
        [self._embedding] = self._rows.embedder.embed([self._job.prompt])
        return self._embedding


_FILTER = Image.Resampling.LANCZOS


def load_init_image(storage: Storage, job: Job) -> Image.Image | None:
    """The initial image as RGB, or None for text to image.

    It was checked and re-encoded when it came in, so only its absence is an error here.

    Raises:
        InvalidInput: it has been deleted since the job was submitted.
        StorageUnavailable: S3 cannot be reached.
    """
    if job.init_image is None:
        return None
    try:
        stored = storage.get(job.init_image["s3_key"])
    except ObjectMissing as error:
        raise InvalidInput("the initial image has been deleted") from error
    with Image.open(io.BytesIO(stored.body), formats=("PNG", "WEBP", "JPEG")) as image:
        return resized(image.convert("RGB"), (job.width, job.height), job.resize_mode)


def resized(image: Image.Image, size: tuple[int, int], mode: str | None) -> Image.Image:
    """The RGB `image` at (width, height) = `size`.

    `fill` cuts off what is too much on two sides; `fit` shows all of it and continues its edges.
    `stretch`, or None, leaves it as it is: the pipelines of diffusers stretch images themselves,
    and have always done so for jobs without a mode.
    """
    if mode == "fill":
        return ImageOps.fit(image, size, _FILTER)
    if mode == "fit":
        return _with_edges_continued(ImageOps.contain(image, size, _FILTER), size)
    return image


def _with_edges_continued(image: Image.Image, size: tuple[int, int]) -> Image.Image:
    """Bars of one colour would be taken for part of the scene."""
    across, down = size[0] - image.width, size[1] - image.height
    beside = ((down // 2, down - down // 2), (across // 2, across - across // 2), (0, 0))
    return Image.fromarray(np.pad(np.asarray(image), beside, mode="edge"))
