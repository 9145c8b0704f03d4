"""One worker process: its connections, its engines, its leases, and how it stops."""

import os
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import redis
from celery import Celery
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.orm import Session, sessionmaker

from shared.core.broker import REDIS_AWAY, publish_job
from shared.core.errors import JobError
from shared.core.filters import Filters
from shared.core.logging import get_logger
from shared.core.settings import Provenance, Settings
from shared.core.storage import Storage
from shared.core.worker_registry import WorkerState
from shared.jobs.models import Job
from shared.jobs.queries.transitions import JobRows
from worker.core.draining import Drain
from worker.core.queues import ConsumerWatch
from worker.core.registration import Identity
from worker.jobs.inputs import PromptRows
from worker.jobs.lease import LeaseRenewer, StopReason
from worker.jobs.progress import ProgressReporter
from worker.models.cache import ModelCache
from worker.models.controlnets import ControlNetFiles
from worker.models.loras import LoraFiles

if TYPE_CHECKING:
    from worker.jobs.signing import ImageSigner

log = get_logger(__name__)

EXIT_DEVICE_LOST = 70
"""The device can only be used again by a new process (EX_SOFTWARE of sysexits.h)."""

_FINISH_SECONDS = 2.0
"""What jobs past the device may take to be uploaded and committed before they are handed back."""

_RELEASE_SECONDS = 2.5
"""What handing back may take then: the process is gone within five seconds of the fault."""

_ENCODERS = max(1, (os.cpu_count() or 1) - 1)


@dataclass
class WorkerProcess:
    """What the steps of a job use. Built once, in `worker.generate`."""

    settings: Settings
    identity: Identity
    celery: Celery
    database: sessionmaker[Session]
    redis: "redis.Redis"
    storage: Storage
    prompts: PromptRows
    leases: LeaseRenewer
    progress: ProgressReporter
    drain_order: Drain
    models: ModelCache
    loras: LoraFiles = field(default_factory=lambda: LoraFiles(()))
    controlnets: ControlNetFiles = field(default_factory=lambda: ControlNetFiles(()))
    provenance: Mapping[str, Provenance] = field(default_factory=dict)
    """Model -> how its images say that it made them."""
    signer: "ImageSigner | None" = None
    """There where a model's images are signed."""
    filters: Filters | None = None
    """None: nothing looks at images."""
    threads: int | None = None
    """Jobs that it can have in flight; known once the models are."""
    state: WorkerState = WorkerState.STARTING
    poison_slot: threading.Semaphore = field(default_factory=threading.Semaphore)
    """Held by the one job in flight that may be what killed a worker (see `worker.jobs.claim`)."""
    encoders: threading.Semaphore = field(default_factory=lambda: threading.Semaphore(_ENCODERS))
    """Who encodes an image: rows that end together must not take every core from the engine."""
    watch: ConsumerWatch | None = None
    """Known once there is a consumer."""
    _faulty: threading.Event = field(default_factory=threading.Event)

    @property
    def device(self) -> str:
        return self.models.device

    @property
    def is_faulty(self) -> bool:
        """Whether it is about to end, because a new process can do what it cannot."""
        stalled = self.watch is not None and self.watch.stalled
        return stalled or self.state is WorkerState.FAULTY

    @property
    def claims(self) -> bool:
        """Whether it still takes new jobs."""
        if self.drain_order.is_draining:
            return False
        return self.state not in (WorkerState.DRAINING, WorkerState.FAULTY)

    def heartbeat(self) -> dict[str, Any]:
        """What the API shows of this worker."""
        state, jobs = self.state, len(self.leases.held)
        if self.is_faulty:
            state = WorkerState.FAULTY
        elif state is WorkerState.READY and self.drain_order.is_draining:
            state = WorkerState.DRAINING
        elif state is WorkerState.READY and jobs:
            state = WorkerState.BUSY
        return {
            "kind": "gpu",
            "state": state,
            "device": self.device,
            "models": self.models.status(),
            "jobs": jobs,
            "threads": self.threads,
            "memory_bytes": self.models.used_bytes,
            "memory_limit": self.models.limit,
        }

    @property
    def name(self) -> str:
        """The name under which it claims."""
        return self.identity.name

    def transition(self, statement: JobRows) -> Job | None:
        """Make one transition and publish it; None when it came too late.

        Raises:
            SQLAlchemyError: the database cannot be reached.
        """
        with self.database.begin() as session:
            changed = session.scalars(statement).one_or_none()
        if changed is not None:
            self.progress.job_changed(changed)
        return changed

    def publish(self, job: Job) -> None:
        """Offer a queued job to another worker now; if Redis is unavailable the dispatcher will."""
        try:
            publish_job(self.celery, job.id, job.model, job.queue_class)
        except REDIS_AWAY as error:
            log.warning("publish_failed", error=type(error).__name__)

    def drain(self, grace_seconds: float) -> None:
        """Claim nothing more; finish what is in flight within the grace, hand back the rest."""
        if self.state is not WorkerState.FAULTY:
            self.state = WorkerState.DRAINING

        def release() -> None:
            threading.Event().wait(grace_seconds)
            if self.leases.held:
                log.info("handing_back", jobs=len(self.leases.held))
            self.leases.stop_all(StopReason.RELEASED)

        threading.Thread(target=release, name="drain", daemon=True).start()

    def device_failed(self, error: JobError) -> None:
        """The device is lost: end or hand back every job and leave; a new process starts clean.

        The jobs that were on the device have failed by now and are recorded as such by their
        threads; those that were past it may still finish.
        """
        if self._faulty.is_set():
            return
        self._faulty.set()
        self.state = WorkerState.FAULTY
        log.error("device_failed", code=error.code, reason=error.message)
        threading.Thread(target=self._leave, name="leave", daemon=True).start()

    def _leave(self) -> None:
        self._wait_until_idle(_FINISH_SECONDS)
        self.leases.stop_all(StopReason.RELEASED)
        self._wait_until_idle(_RELEASE_SECONDS)
        # Not sys.exit: a poisoned context can hang every orderly way out.
        os._exit(EXIT_DEVICE_LOST)

    def _wait_until_idle(self, seconds: float) -> None:
        deadline = time.monotonic() + seconds
        while self.leases.held and time.monotonic() < deadline:
            time.sleep(0.05)

    def close(self) -> None:
        """Stop threads and connections, after the last job."""
        self.models.close()
        if self.filters is not None:
            self.filters.close()
        self.leases.close()
        self.progress.close()
        self.storage.close()
        try:
            self.redis.close()
        except (redis.RedisError, SQLAlchemyError, OSError) as error:
            log.debug("close_failed", error=type(error).__name__)
