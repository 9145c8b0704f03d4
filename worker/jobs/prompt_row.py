"""The row of a job's prompt: known, found, or embedded while the device makes the picture."""

import threading
from collections import OrderedDict
from uuid import UUID

from sqlalchemy.orm import Session, sessionmaker

from shared.database import one_statement
from shared.gallery import statements as gallery
from shared.jobs.models import Job
from worker.embedding.embedder import Embedder

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
        self._key = (job.tenant_id, gallery.text_sha256(job.prompt))
        self._known = self._key in rows
        self._embedding: list[float] | None = None

    def look_up(self, database: sessionmaker[Session]) -> None:
        """Embed the prompt if the tenant has never used it; does nothing the second time.

        Raises:
            SQLAlchemyError: Postgres is away.
        """
        if self._known or self._embedding is not None:
            return
        statement = gallery.find_prompt(self._job.tenant_id, self._job.prompt)
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
            gallery.ensure_prompt(
                self._job.tenant_id, self._job.prompt, embedding, self._rows.embedder.model_name
            )
        )

    def _embed(self) -> list[float]:
        [self._embedding] = self._rows.embedder.embed([self._job.prompt])
        return self._embedding
