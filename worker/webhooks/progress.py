"""Tell CPU workers of new webhook deliveries, and receivers that asked for it of progress."""

import threading
import time
from collections.abc import Iterable
from uuid import UUID

import redis
from celery import Celery
from kombu.exceptions import KombuError
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.orm import Session, sessionmaker

from shared.core.broker import publish_deliveries
from shared.core.logging import get_logger
from shared.jobs.models import Job
from shared.webhooks import outbox, queries
from shared.webhooks.events import EventType
from worker.engine.interface import StepUpdate

log = get_logger(__name__)


class WebhookHints:
    """Publishes hints after a commit. Redis being away delays deliveries, it loses none."""

    def __init__(self, app: Celery) -> None:
        self._app = app

    def jobs_changed(self, jobs: Iterable[Job]) -> None:
        """The deliveries that came with these jobs' transitions are due."""
        self.publish([made for job in jobs for made in job.webhook_deliveries or ()])

    def publish(self, delivery_ids: Iterable[UUID]) -> None:
        """These deliveries are due."""
        try:
            publish_deliveries(self._app, delivery_ids)
        except (KombuError, redis.RedisError, OSError) as error:
            # The dispatcher offers what is due within two seconds.
            log.warning("publish_failed", error=type(error).__name__)


# Steps are noted from the engine's thread at the cost of a dictionary's entry. A thread of this
# module's own writes the events: of one job at most one in half a second, and only while somebody
# wants them. What goes wrong here is only left out.

INTERVAL_SECONDS = 0.5
"""The least time between two such events of one job."""


_REMEMBERED_SECONDS = 1.0
"""How long it is believed which tenants want them."""


class ProgressWebhooks:
    """Writes `job.progress` events of the jobs in this process's hands."""

    def __init__(self, database: sessionmaker[Session], hints: WebhookHints) -> None:
        self._database = database
        self._hints = hints
        self._lock = threading.Lock()
        self._jobs: dict[UUID, Job] = {}
        self._steps: dict[UUID, dict[int, StepUpdate]] = {}
        self._wanting: dict[UUID, tuple[float, bool]] = {}
        self._wake = threading.Event()
        self._closed = False
        self._thread = threading.Thread(target=self._run, name="progress-webhooks", daemon=True)
        self._thread.start()

    def note(self, job: Job, index: int, update: StepUpdate) -> None:
        """The newest step of image `index`; returns at once."""
        with self._lock:
            self._jobs[job.id] = job
            self._steps.setdefault(job.id, {})[index] = update
        self._wake.set()

    def forget(self, job_id: UUID) -> None:
        """The job's attempt has ended."""
        with self._lock:
            self._jobs.pop(job_id, None)
            self._steps.pop(job_id, None)

    def close(self) -> None:
        """Stop."""
        self._closed = True
        self._wake.set()
        self._thread.join(timeout=2)

    def _run(self) -> None:
        pause = threading.Event()
        while not self._closed:
            self._wake.wait()
            self._wake.clear()
            # First the pause: jobs of less than half a second have no progress to tell of.
            pause.wait(INTERVAL_SECONDS)
            try:
                self._tell()
            except SQLAlchemyError as error:
                log.debug("progress_not_told", error=type(error).__name__)

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
                made = session.scalar(emitted)
            self._hints.publish(made or ())

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
    done = sum(update.step / update.steps for update in steps.values())
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
