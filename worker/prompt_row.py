"""The row of a job's prompt: found, or embedded while the device makes the picture."""

from uuid import UUID

from sqlalchemy import Select
from sqlalchemy.orm import Session, sessionmaker

from shared.database import one_statement
from shared.gallery import statements as gallery
from shared.jobs.models import Job
from worker.embedder import Embedder


class PromptRow:
    """The row of one job's prompt. Embeds at most once, however often a commit is tried."""

    def __init__(self, embedder: Embedder, job: Job) -> None:
        self._embedder = embedder
        self._job = job
        self._known = False
        self._embedding: list[float] | None = None

    def look_up(self, database: sessionmaker[Session]) -> None:
        """Embed the prompt if the tenant has never used it; does nothing the second time.

        Raises:
            SQLAlchemyError: Postgres is away.
        """
        if self._known or self._embedding is not None:
            return
        with one_statement(database) as session:
            self._known = session.scalars(self._find()).one_or_none() is not None
        if not self._known:
            self._embed()

    def ensure(self, session: Session) -> UUID:
        """Its id, inside the transaction that needs it; made there if it is new."""
        embedding = self._embedding
        if embedding is None:
            known = session.scalars(self._find(locked=True)).one_or_none()
            if known is not None:
                return known
            # Retention has removed it since.
            embedding = self._embed()
        made = gallery.ensure_prompt(
            self._job.tenant_id, self._job.prompt, embedding, self._embedder.model_name
        )
        return session.scalars(made).one()

    def _find(self, *, locked: bool = False) -> Select[UUID]:
        return gallery.find_prompt(self._job.tenant_id, self._job.prompt, locked=locked)

    def _embed(self) -> list[float]:
        [self._embedding] = self._embedder.embed([self._job.prompt])
        return self._embedding
