"""What the leading dispatcher does each round; every duty is safe to repeat and to skip."""

import json
import time
from collections import Counter
from datetime import timedelta
from uuid import UUID

import redis
from celery import Celery
from kombu.exceptions import KombuError
from sqlalchemy.orm import Session, sessionmaker

from shared.jobs import statements
from shared.jobs.models import Job
from shared.jobs.state import JobState
from shared.jobs.statements import JobRows
from shared.logging import get_logger
from shared.queue import names
from shared.queue.events import append_event
from shared.queue.publish import publish_job
from shared.settings import Settings

log = get_logger(__name__)

_ROUNDS_OF_DISAGREEMENT = 2
"""A message on its way between ledger and Redis looks lost for one round, not for two."""
_PUBLISH_AT_ONCE = 2_000
IDEMPOTENCY_KEYS_KEPT = timedelta(hours=24)


class Duties:
    """The duties and the little they remember between rounds."""

    def __init__(
        self,
        settings: Settings,
        database: sessionmaker[Session],
        client: "redis.Redis",
        app: Celery,
    ) -> None:
        self._settings = settings
        self._database = database
        self._redis = client
        self._app = app
        self._disagreements: Counter[str] = Counter()
        self._judge_leases_after = 0.0

    def perform_all(self) -> None:
        """One round.

        Raises:
            SQLAlchemyError: the ledger cannot be reached; the rest of the round is left out.
        """
        if time.monotonic() >= self._judge_leases_after:
            self.expire_leases()
        self.expire_deadlines()
        try:
            self.publish_lost()
        except (redis.RedisError, KombuError, OSError) as error:
            log.warning("redis_unreachable", error=type(error).__name__)

    def postpone_lease_expiry(self) -> None:
        """After an outage of Postgres: give the living time to renew before anyone is judged."""
        heartbeat = self._settings.heartbeat.total_seconds()
        self._judge_leases_after = time.monotonic() + min(heartbeat, 5.0)

    def expire_leases(self) -> list[Job]:
        """Requeue what dead workers held; fail what has killed its worker twice."""
        jobs = self._change(statements.expire_leases(), "lease_expired")
        for job in jobs:
            if job.state == JobState.QUEUED:
                self._publish(job.id, job.model, job.lane)
        return jobs

    def expire_deadlines(self) -> list[Job]:
        """End the queued jobs whose start or finish deadline has passed."""
        return self._change(statements.expire_deadlines(), "deadline_passed")

    def publish_lost(self) -> int:
        """Publish what the ledger has queued and Redis has lost; returns how many.

        Counts are compared first; ids only where the counts disagree two rounds running.

        Raises:
            redis.RedisError: Redis cannot be reached; the next round tries again.
        """
        with self._database.begin() as session:
            rows = session.execute(statements.count_due(names.INTERACTIVE)).all()
        due = {row[0]: row[1] for row in rows}
        published = 0
        for model, count in due.items():
            queue = names.generate_queue(model, names.INTERACTIVE)
            if count <= self._redis.llen(queue):
                self._disagreements.pop(queue, None)
                continue
            self._disagreements[queue] += 1
            if self._disagreements[queue] >= _ROUNDS_OF_DISAGREEMENT:
                published += self._publish_missing(model, names.INTERACTIVE)
        for queue in list(self._disagreements):
            if queue not in {names.generate_queue(model, names.INTERACTIVE) for model in due}:
                del self._disagreements[queue]
        return published

    def _publish_missing(self, model: str, lane: str) -> int:
        queue = names.generate_queue(model, lane)
        with self._database.begin() as session:
            due = list(session.scalars(statements.list_due(model, lane, _PUBLISH_AT_ONCE)))
        waiting = {_job_id(message) for message in self._redis.lrange(queue, 0, -1)}
        missing = [job_id for job_id in due if job_id not in waiting]
        for job_id in missing:
            publish_job(self._app, job_id, model, lane)
        if missing:
            log.warning("published_again", queue=queue, count=len(missing))
        return len(missing)

    def _publish(self, job_id: UUID, model: str, lane: str) -> None:
        try:
            publish_job(self._app, job_id, model, lane)
        except (redis.RedisError, KombuError, OSError) as error:
            log.warning("publish_failed", error=type(error).__name__)

    def _change(self, statement: JobRows, event: str) -> list[Job]:
        with self._database.begin() as session:
            jobs = list(session.scalars(statement))
        for job in jobs:
            log.info(event, job_id=str(job.id), state=job.state, attempt=job.attempt)
        self._announce(jobs)
        return jobs

    def _announce(self, jobs: list[Job]) -> None:
        if not jobs:
            return
        try:
            with self._redis.pipeline(transaction=False) as pipeline:
                for job in jobs:
                    data = {"state": str(job.state), "sequence": job.sequence}
                    append_event(pipeline, job.id, "job", data)
                pipeline.execute()
        except redis.RedisError as error:
            log.warning("events_not_written", error=type(error).__name__)


def _job_id(message: bytes | str) -> UUID | None:
    """The job a queued Celery message is about: its task id."""
    try:
        return UUID(json.loads(message)["headers"]["id"])
    except (ValueError, KeyError, TypeError):
        return None
