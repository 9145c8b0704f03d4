"""Tell CPU workers of new webhook deliveries, and receivers that asked for it of progress."""

import threading
import time
from collections.abc import Iterable
from uuid import UUID

from celery import Celery
from sqlalchemy.orm import Session, sessionmaker

from shared.core.broker import REDIS_AWAY, publish_deliveries
from shared.core.logging import get_logger
from shared.jobs.models import Job
from shared.webhooks import outbox, queries
from shared.webhooks.models import EventType
from worker.core.loop import BackgroundLoop
from worker.engine.interface import StepUpdate

log = get_logger(__name__)


class WebhookNotifier:
    """Tells CPU workers of due deliveries after a commit. Without Redis they are late, not lost."""

    def __init__(self, app: Celery) -> None:
        self._app = app

    def jobs_changed(self, jobs: Iterable[Job]) -> None:
        """The deliveries that came with these jobs' transitions are due."""
        self.publish([delivery for job in jobs for delivery in job.webhook_deliveries or ()])

    def publish(self, delivery_ids: Iterable[UUID]) -> None:
        try:
            publish_deliveries(self._app, delivery_ids)
        except REDIS_AWAY as error:
            # The dispatcher offers what is due within two seconds.
            log.warning("publish_failed", error=type(error).__name__)


# Steps are noted from the engine's thread at the cost of a dictionary's entry. A thread of this
# module's own writes the events: of one job at most one in half a second, and only while somebody
# wants them. What goes wrong here is only left out.

INTERVAL_SECONDS = 0.5
"""The least time between two such events of one job."""

_REMEMBERED_SECONDS = 1.0
"""How long it is believed which tenants want them."""


class ProgressWebhooks(BackgroundLoop):
    """Writes `job.progress` events of the jobs that this process has in flight."""

    def __init__(self, database: sessionmaker[Session], notifier: WebhookNotifier) -> None:
        super().__init__("progress-webhooks", None, join=2)
        self._database = database
        self._notifier = notifier
        self._lock = threading.Lock()
        self._jobs: dict[UUID, Job] = {}
        self._steps: dict[UUID, dict[int, StepUpdate]] = {}
        self._wanting: dict[UUID, tuple[float, bool]] = {}
        self.start()

    def note(self, job: Job, index: int, update: StepUpdate) -> None:
        """The newest step of image `index`; returns at once."""
        with self._lock:
            self._jobs[job.id] = job
            self._steps.setdefault(job.id, {})[index] = update
        self.wake()

    def discard(self, job_id: UUID) -> None:
        """The job's attempt has ended."""
        with self._lock:
            self._jobs.pop(job_id, None)
            self._steps.pop(job_id, None)

    def step(self) -> float | None:
        """First the pause: jobs of less than half a second have no progress to tell of."""
        self.pause(INTERVAL_SECONDS)
        self._tell()
        return self._interval

    def _tell(self) -> None:
        with self._lock:
            moved = [(job, dict(self._steps[job.id])) for job in self._jobs.values()]
            self._jobs.clear()
        for job, steps in moved:
            if not self._is_wanted(job):
                continue
            emitted = outbox.emit(
                job.tenant_id,
                EventType.JOB_PROGRESS,
                job.id,
                _snapshot(job, steps),
                sequence=job.sequence,
                webhook=job.webhook,
            )
            with self._database.begin() as session:
                deliveries = session.scalar(emitted)
            self._notifier.publish(deliveries or ())

    def _is_wanted(self, job: Job) -> bool:
        if job.webhook is not None and EventType.JOB_PROGRESS in job.webhook["events"]:
            return True
        until, wanted = self._wanting.get(job.tenant_id, (0.0, False))
        if time.monotonic() < until:
            return wanted
        statement = queries.find_listener(job.tenant_id, EventType.JOB_PROGRESS)
        with self._database.begin() as session:
            wanted = session.scalar(statement) is not None
        self._wanting[job.tenant_id] = time.monotonic() + _REMEMBERED_SECONDS, wanted
        return wanted


def _snapshot(job: Job, steps: dict[int, StepUpdate]) -> dict[str, object]:
    """The job as `shared.webhooks.outbox` notes it, with its progress over all images."""
    newest = steps[max(steps)]
    done = sum(update.fraction for update in steps.values())
    return {
        "kind": job.kind,
        "state": job.state,
        "model": job.model,
        "session_id": job.session_id,
        "batch_id": str(job.batch_id) if job.batch_id else None,
        "custom_id": job.custom_id,
        "seeds": job.seeds,
        "metadata": job.job_metadata,
        "created_at": job.created_at.isoformat(),
        "started_at": job.started_at.isoformat() if job.started_at else None,
        "finished_at": None,
        "progress": {
            "step": newest.step,
            "steps": newest.steps,
            "fraction": round(min(done / len(job.seeds), 1.0), 4),
        },
    }
