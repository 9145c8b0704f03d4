"""The leader's periodic tasks for jobs and webhook deliveries, and how batches end."""

import contextlib
from collections import Counter
from collections.abc import Sequence
from uuid import UUID

import redis
from celery import Celery
from sqlalchemy.orm import Session, sessionmaker

from shared.batches import lifecycle
from shared.batches import queries as batch_queries
from shared.batches.lifecycle import END_EVENTS, snapshot
from shared.batches.models import Batch
from shared.batches.state import end_state
from shared.core import broker
from shared.core.broker import REDIS_AWAY, append_end, append_event, job_of, publish_job
from shared.core.errors import WorkerLost
from shared.core.logging import get_logger
from shared.core.settings import Settings
from shared.jobs import metrics as job_metrics
from shared.jobs.models import Job
from shared.jobs.queries import periodic as job_queries
from shared.jobs.queries.transitions import JobRows
from shared.jobs.state import JobState
from shared.webhooks import delivery_queries, outbox
from worker.maintenance.leader import periodic
from worker.webhooks.progress import WebhookNotifier

log = get_logger(__name__)

_ROUNDS_OF_DISAGREEMENT = 2
"""A message on its way between database and Redis looks lost for one round, not for two."""

_AT_ONCE = 2_000
"""Jobs that one task changes or publishes in one round."""

_OFFERED_AT_ONCE = 200

_WINDOW = 2 * _AT_ONCE
"""Messages of a queue that are looked at: those next to be taken."""


class Recovery:
    """The periodic tasks that keep Postgres, Redis and the workers in step.

    Safe to repeat and to skip: a notice that comes twice finds nothing to claim the second time.
    """

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
        self._notifier = WebhookNotifier(app)
        self._disagreements: Counter[str] = Counter()

    @periodic(waits_for_renewals=True)
    def expire_leases(self) -> list[Job]:
        """Requeue what dead workers held; fail what has killed its worker twice."""
        jobs = self._change(
            job_queries.expire_leases(_AT_ONCE, self._settings.lease), "lease_expired"
        )
        for job in jobs:
            job_metrics.lost(job, WorkerLost.code)
        self._publish([job for job in jobs if job.state == JobState.QUEUED])
        return jobs

    @periodic()
    def expire_deadlines(self) -> list[Job]:
        """End the jobs whose start or finish deadline has passed."""
        queued = self._change(job_queries.expire_queued(_AT_ONCE), "deadline_passed")
        unfinished = job_queries.expire_unfinished(_AT_ONCE, self._settings.lease)
        running = self._change(unfinished, "deadline_passed")
        for job in running:
            # Its worker learns that the lease is gone, and stops at the next step.
            self._redis.publish(broker.STOP_CHANNEL, str(job.id))
        return queued + running

    @periodic()
    def publish_lost(self) -> int:
        """Publish what the database has queued and Redis has lost; returns how many.

        Counts are compared first; ids only where the counts disagree two rounds running. Bulk work
        is not looked at: it is enqueued in portions.

        Raises:
            REDIS_AWAY: Redis cannot be reached.
        """
        with self._database.begin() as session:
            rows = session.execute(job_queries.count_due(broker.INTERACTIVE)).all()
        due = {broker.generate_queue(row[0], broker.INTERACTIVE): row for row in rows}
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

    @periodic()
    def offer_deliveries(self) -> int:
        """Publish due deliveries: first attempts whose notice was lost, and all later ones."""
        waiting = int(self._redis.llen(broker.WEBHOOK_QUEUE))
        if waiting >= _OFFERED_AT_ONCE:
            return 0  # The workers are behind; more notices would not make them faster.
        with self._database.begin() as session:
            due = session.scalars(delivery_queries.list_due(_OFFERED_AT_ONCE)).all()
        self._notifier.publish(due)
        return len(due)

    def _publish_missing(self, queue: str, model: str) -> int:
        with self._database.begin() as session:
            due = session.scalars(job_queries.list_due(model, broker.INTERACTIVE, _AT_ONCE)).all()
        # Messages are taken from the right.
        waiting = {job_of(message) for message in self._redis.lrange(queue, -_WINDOW, -1)}
        missing = [job_id for job_id in due if job_id not in waiting]
        for job_id in missing:
            publish_job(self._app, job_id, model, broker.INTERACTIVE)
        if missing:
            log.warning("published_again", queue=queue, count=len(missing))
        return len(missing)

    def _publish(self, jobs: Sequence[Job]) -> None:
        try:
            for job in jobs:
                publish_job(self._app, job.id, job.model, job.queue_class)
        except REDIS_AWAY as error:
            # They are queued in the database; `publish_lost` finds them.
            log.warning("publish_failed", error=type(error).__name__)

    def _change(self, statement: JobRows, event: str) -> list[Job]:
        with self._database.begin() as session:
            jobs = list(session.scalars(statement))
        for job in jobs:
            log.info(event, job_id=str(job.id), state=job.state, attempt=job.attempt)
        self._publish_states(jobs)
        self._notifier.jobs_changed(jobs)
        return jobs

    def _publish_states(self, jobs: list[Job]) -> None:
        if not jobs:
            return
        try:
            with self._redis.pipeline(transaction=False) as pipeline:
                for job in jobs:
                    data = {"state": str(job.state), "sequence": job.sequence}
                    append_event(pipeline, job.id, "job", data)
                for batch_id in {job.batch_id for job in jobs if job.finished_at}:
                    if batch_id is not None:
                        append_end(pipeline, batch_id)
                pipeline.execute()
        except redis.RedisError as error:
            log.warning("events_not_written", error=type(error).__name__)


class BatchLifecycle:
    """What happens to batches without anybody asking."""

    def __init__(self, database: sessionmaker[Session], client: "redis.Redis", app: Celery) -> None:
        self._database = database
        self._redis = client
        self._notifier = WebhookNotifier(app)

    def advance(self) -> None:
        """Start what has begun and end what is done.

        Raises:
            SQLAlchemyError: the database cannot be reached.
        """
        with self._database.begin() as session:
            session.execute(lifecycle.start_batches())
            complete = session.execute(lifecycle.list_complete()).all()
        for tenant_id, batch_id in complete:
            with self._database.begin() as session:
                batch = session.scalars(batch_queries.lock_batch(tenant_id, batch_id)).one_or_none()
                deliveries = self._end(session, batch) if batch is not None else ()
            self._notifier.publish(deliveries)
            with contextlib.suppress(redis.RedisError):
                append_end(self._redis, batch_id)

    def _end(self, session: Session, batch: Batch) -> Sequence[UUID]:
        """The end, its counts and its webhooks are one transaction; a retry that came first wins.

        The counts cannot change while the batch is locked: all jobs have ended, and whoever wants
        to try one again must lock the batch first. Returns the webhook deliveries, to be published
        after the commit.
        """
        rows = session.execute(batch_queries.count_jobs([batch.id])).all()
        summary = {
            state: {"jobs": jobs, "images": images, "cost": int(cost)}
            for _, state, jobs, images, cost in rows
        }
        state = end_state(
            {name: counted["jobs"] for name, counted in summary.items()},
            skipped_lines=batch.invalid_lines,
            cancel_requested=batch.cancel_requested,
        )
        ended = session.scalars(
            lifecycle.end_batch(batch.id, state, summary),
            execution_options={"populate_existing": True},
        ).one_or_none()
        if ended is None:
            return ()
        log.info("batch_ended", batch_id=str(ended.id), state=ended.state)
        notified = outbox.emit(
            ended.tenant_id,
            END_EVENTS[state],
            ended.id,
            snapshot(ended),
            sequence=ended.sequence,
            webhook=ended.webhook,
        )
        return session.scalars(notified).one() or ()
