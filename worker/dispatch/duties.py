"""What the leading dispatcher does for jobs: end what is overdue, publish what Redis has lost."""

from collections import Counter
from collections.abc import Sequence
from datetime import timedelta

import redis
from celery import Celery
from kombu.exceptions import KombuError
from sqlalchemy.orm import Session, sessionmaker

from shared.errors import WorkerLost
from shared.jobs import statements
from shared.jobs.models import Job
from shared.jobs.state import JobState
from shared.jobs.statements import JobRows
from shared.logging import get_logger
from shared.metrics import jobs as job_metrics
from shared.queue import names
from shared.queue.events import append_event
from shared.queue.publish import publish_job
from shared.queue.reading import job_of
from shared.settings import Settings
from worker.dispatch.dispatcher import Duty
from worker.webhooks.hints import WebhookHints

log = get_logger(__name__)

_ROUNDS_OF_DISAGREEMENT = 2
"""A message on its way between ledger and Redis looks lost for one round, not for two."""
_AT_ONCE = 2_000
"""Jobs that one duty changes or publishes in one round."""
_WINDOW = 2 * _AT_ONCE
"""Messages of a queue that are looked at: those next to be taken."""
_LONGEST_SETTLE = timedelta(seconds=5)


class JobDuties:
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
        self._hints = WebhookHints(app)
        self._disagreements: Counter[str] = Counter()

    @property
    def duties(self) -> list[Duty]:
        """For the dispatcher, in order."""
        # Workers that lived through an outage retry every second; they come first.
        settle = min(self._settings.heartbeat, _LONGEST_SETTLE)
        return [
            Duty("expire_leases", self.expire_leases, settle=settle),
            Duty("expire_deadlines", self.expire_deadlines),
            Duty("publish_lost", self.publish_lost),
        ]

    def expire_leases(self) -> list[Job]:
        """Requeue what dead workers held; fail what has killed its worker twice."""
        jobs = self._change(statements.expire_leases(_AT_ONCE), "lease_expired")
        for job in jobs:
            job_metrics.lost(job, WorkerLost.code)
        self._publish([job for job in jobs if job.state == JobState.QUEUED])
        return jobs

    def expire_deadlines(self) -> list[Job]:
        """End the jobs whose start or finish deadline has passed."""
        queued = self._change(statements.expire_queued(_AT_ONCE), "deadline_passed")
        running = self._change(statements.expire_unfinished(_AT_ONCE), "deadline_passed")
        for job in running:
            # Its worker learns that the lease is gone, and stops at the next step.
            self._redis.publish(names.STOP_CHANNEL, str(job.id))
        return queued + running

    def publish_lost(self) -> int:
        """Publish what the ledger has queued and Redis has lost; returns how many.

        Counts are compared first; ids only where the counts disagree two rounds running. Bulk work
        is not looked at: it is fed to its queue in portions.

        Raises:
            redis.RedisError, kombu.exceptions.KombuError: Redis cannot be reached.
        """
        with self._database.begin() as session:
            rows = session.execute(statements.count_due(names.INTERACTIVE)).all()
        due = {names.generate_queue(row[0], names.INTERACTIVE): row for row in rows}
        for queue in self._disagreements.keys() - due.keys():
            del self._disagreements[queue]
        published = 0
        for queue, (model, count) in due.items():
            if count <= self._redis.llen(queue):
                self._disagreements.pop(queue, None)
                continue
            self._disagreements[queue] += 1
            if self._disagreements[queue] >= _ROUNDS_OF_DISAGREEMENT:
                published += self._publish_missing(queue, model)
        return published

    def _publish_missing(self, queue: str, model: str) -> int:
        with self._database.begin() as session:
            due = session.scalars(statements.list_due(model, names.INTERACTIVE, _AT_ONCE)).all()
        # Messages are taken from the right.
        waiting = {job_of(message) for message in self._redis.lrange(queue, -_WINDOW, -1)}
        missing = [job_id for job_id in due if job_id not in waiting]
        for job_id in missing:
            publish_job(self._app, job_id, model, names.INTERACTIVE)
        if missing:
            log.warning("published_again", queue=queue, count=len(missing))
        return len(missing)

    def _publish(self, jobs: Sequence[Job]) -> None:
        try:
            for job in jobs:
                publish_job(self._app, job.id, job.model, job.lane)
        except (redis.RedisError, KombuError, OSError) as error:
            # They are queued in the ledger; `publish_lost` finds them.
            log.warning("publish_failed", error=type(error).__name__)

    def _change(self, statement: JobRows, event: str) -> list[Job]:
        with self._database.begin() as session:
            jobs = list(session.scalars(statement))
        for job in jobs:
            log.info(event, job_id=str(job.id), state=job.state, attempt=job.attempt)
        self._announce(jobs)
        self._hints.jobs_changed(jobs)
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
