"""The leader's periodic tasks for jobs, batches and webhook deliveries."""

from collections import Counter
from collections.abc import Sequence
from datetime import timedelta
from uuid import UUID

import redis
from celery import Celery
from kombu.exceptions import KombuError
from sqlalchemy.orm import Session, sessionmaker

from shared.batches import bulk_queries
from shared.batches import queries as batch_queries
from shared.batches.models import Batch
from shared.batches.queries import end_event, snapshot
from shared.batches.state import end_state
from shared.core import broker
from shared.core.broker import append_event, job_of, publish_job
from shared.core.errors import WorkerLost
from shared.core.logging import get_logger
from shared.core.settings import Settings
from shared.jobs import metrics as job_metrics
from shared.jobs.models import Job
from shared.jobs.queries import periodic
from shared.jobs.queries.parts import JobRows
from shared.jobs.state import JobState
from shared.webhooks import delivery_queries, outbox
from worker.maintenance.leader import Duty
from worker.webhooks.progress import WebhookHints

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
        jobs = self._change(periodic.expire_leases(_AT_ONCE), "lease_expired")
        for job in jobs:
            job_metrics.lost(job, WorkerLost.code)
        self._publish([job for job in jobs if job.state == JobState.QUEUED])
        return jobs

    def expire_deadlines(self) -> list[Job]:
        """End the jobs whose start or finish deadline has passed."""
        queued = self._change(periodic.expire_queued(_AT_ONCE), "deadline_passed")
        running = self._change(periodic.expire_unfinished(_AT_ONCE), "deadline_passed")
        for job in running:
            # Its worker learns that the lease is gone, and stops at the next step.
            self._redis.publish(broker.STOP_CHANNEL, str(job.id))
        return queued + running

    def publish_lost(self) -> int:
        """Publish what the ledger has queued and Redis has lost; returns how many.

        Counts are compared first; ids only where the counts disagree two rounds running. Bulk work
        is not looked at: it is fed to its queue in portions.

        Raises:
            redis.RedisError, kombu.exceptions.KombuError: Redis cannot be reached.
        """
        with self._database.begin() as session:
            rows = session.execute(periodic.count_due(broker.INTERACTIVE)).all()
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

    def _publish_missing(self, queue: str, model: str) -> int:
        with self._database.begin() as session:
            due = session.scalars(periodic.list_due(model, broker.INTERACTIVE, _AT_ONCE)).all()
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


class BatchEnds:
    """What happens to batches without anybody asking."""

    def __init__(self, database: sessionmaker[Session], app: Celery) -> None:
        self._database = database
        self._hints = WebhookHints(app)

    def settle(self) -> None:
        """Start what has begun and end what is done.

        Raises:
            SQLAlchemyError: the ledger cannot be reached.
        """
        with self._database.begin() as session:
            session.execute(bulk_queries.start_batches())
            complete = session.execute(bulk_queries.list_complete()).all()
        for tenant_id, batch_id in complete:
            with self._database.begin() as session:
                batch = session.scalars(batch_queries.lock_batch(tenant_id, batch_id)).one_or_none()
                deliveries = self._end(session, batch) if batch is not None else ()
            self._hints.publish(deliveries)

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
            bulk_queries.end_batch(batch.id, state, summary),
            execution_options={"populate_existing": True},
        ).one_or_none()
        if ended is None:
            return ()
        log.info("batch_ended", batch_id=str(ended.id), state=ended.state)
        told = outbox.emit(
            ended.tenant_id,
            end_event(state),
            ended.id,
            snapshot(ended),
            sequence=ended.sequence,
            webhook=ended.webhook,
        )
        return session.scalars(told).one() or ()


LOG_KEPT = timedelta(days=30)
"""How long events, deliveries and attempts can be looked at."""


_OFFERED_AT_ONCE = 200


_FORGOTTEN_AT_ONCE = 5_000


_FORGET_EVERY = timedelta(minutes=10)


class DeliveryDuties:
    """Safe to repeat and to skip: a hint given twice finds nothing to claim the second time."""

    def __init__(
        self, database: sessionmaker[Session], client: "redis.Redis", hints: WebhookHints
    ) -> None:
        self._database = database
        self._redis = client
        self._hints = hints

    @property
    def duties(self) -> list[Duty]:
        """For the dispatcher."""
        return [
            Duty("offer_deliveries", self.offer_due),
            Duty("forget_deliveries", self.forget_old, every=_FORGET_EVERY),
        ]

    def offer_due(self) -> int:
        """Publish hints for what is due: first attempts whose hint was lost, and all later ones."""
        waiting = int(self._redis.llen(broker.WEBHOOK_QUEUE))
        if waiting >= _OFFERED_AT_ONCE:
            return 0  # The workers are behind; more hints would not make them faster.
        with self._database.begin() as session:
            due = session.scalars(delivery_queries.list_due(_OFFERED_AT_ONCE)).all()
        self._hints.publish(due)
        return len(due)

    def forget_old(self) -> None:
        """Apply the retention of the delivery log."""
        with self._database.begin() as session:
            session.execute(delivery_queries.forget(LOG_KEPT, _FORGOTTEN_AT_ONCE))
            session.execute(delivery_queries.forget_holds())
