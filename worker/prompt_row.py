"""The row of a job's prompt: found, or embedded while the device makes the picture."""

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
        statement = gallery.find_prompt(self._job.tenant_id, self._job.prompt)
        with one_statement(database) as session:
            self._known = session.scalars(statement).one_or_none() is not None
        if not self._known:
            self._embed()

    @property
    def known(self) -> bool:
        """Whether it was on record when it was looked up."""
        return self._known

    @property
    def sha256(self) -> bytes:
        """What its row is found by."""
        return gallery.text_sha256(self._job.prompt)

    def ensure(self, session: Session) -> None:
        """Have it on record in the transaction, and until its end."""
        embedding = self._embedding or self._embed()
        session.execute(
            gallery.ensure_prompt(
                self._job.tenant_id, self._job.prompt, embedding, self._embedder.model_name
            )
        )

    def _embed(self) -> list[float]:
        [self._embedding] = self._embedder.embed([self._job.prompt])
        return self._embedding
