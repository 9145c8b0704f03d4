"""Tell clients how far their jobs are: events on each job's Redis stream.

Starts come from the jobs' threads, steps from the engine's, which may be many hundreds a second.
They are noted there and written by a thread of this module's own: at most four times a second one
step of each job, its images taking turns, with how far the whole job is. A job's end is written at
once, by whoever ends it, with what is noted of the job.
"""

import base64
import threading
import time
from collections.abc import Callable, Sequence
from statistics import fmean
from typing import Any
from uuid import UUID

import redis

from shared.core.broker import append_end, append_event
from shared.core.logging import get_logger
from shared.jobs.models import Job
from worker.core.loop import BackgroundLoop
from worker.engine.interface import StepUpdate
from worker.webhooks.progress import ProgressWebhooks, WebhookNotifier

log = get_logger(__name__)

_Event = tuple[UUID, str, dict[str, Any]]
"""Of which job, of what kind, and what it says."""

INTERVAL_SECONDS = 0.25
_GATHER_SECONDS = 0.03
"""Between a note and its writing: a job that ends meanwhile costs Redis one round trip in all."""
_QUIET_SECONDS = 2.0
"""How long events are dropped unseen after Redis failed to take one."""

_NOBODYS: tuple[int, dict[int, float]] = (-1, {})


class ProgressReporter(BackgroundLoop):
    """Writes jobs' events. An outage of Redis loses events, never work."""

    def __init__(
        self, client: "redis.Redis", notifier: WebhookNotifier, webhooks: ProgressWebhooks
    ) -> None:
        super().__init__("progress", None, join=2)
        self._redis = client
        self._notifier = notifier
        self._webhooks = webhooks
        self._lock = threading.Lock()
        self._started: dict[UUID, _Event] = {}
        self._latest: dict[tuple[UUID, int], StepUpdate] = {}
        """Of each image, what is not written yet; longest waiting first."""
        self._done: dict[UUID, tuple[int, dict[int, float]]] = {}
        """Of each job in flight: its attempt, and how far its images are, 0 to 1."""
        self._writing = threading.Lock()
        """From taking notes to having written them, so that no event overtakes a job's earlier."""
        self._quiet_until = 0.0
        self.start()

    def on_step(self, job: Job, index: int) -> Callable[[StepUpdate], None]:
        """A callback for the engine: notes the newest step of image `index`, returns at once."""

        def note(update: StepUpdate) -> None:
            with self._lock:
                attempt, done = self._done.get(job.id, _NOBODYS)
                if attempt != job.attempt or done[index] == 1:
                    return  # A late step of an attempt that has ended, or of an image that is made.
                done[index] = update.fraction
                self._latest[(job.id, index)] = update
            self.wake()
            self._webhooks.note(job, index, update)

        return note

    def image_made(self, job: Job, index: int, steps: int) -> None:
        """Note that image `index` has had its last step: the engine's callbacks may lag behind."""
        self.on_step(job, index)(StepUpdate(steps, steps, None))

    def job_started(self, job: Job) -> None:
        """Announce soon that a worker has begun the job; returns at once."""
        with self._lock:
            self._started[job.id] = _transition(job)
            self._done[job.id] = job.attempt, dict.fromkeys(range(len(job.seeds)), 0.0)
        self.wake()
        self._webhooks.discard(job.id)
        self._notifier.jobs_changed([job])

    def job_changed(self, job: Job, images: Sequence[dict[str, Any]] = ()) -> None:
        """Announce a transition, after what was noted of the job before it, and the committed
        images that it brings."""
        with self._writing:
            events = self._take(job.id)
            events += [(job.id, "image", image) for image in images]
            self._write([*events, _transition(job)], job.batch_id if job.finished_at else None)
        self._webhooks.discard(job.id)
        self._notifier.jobs_changed([job])

    def attempt_over(self, job: Job) -> None:
        """Forget what was noted of an attempt without a transition: others continue with it."""
        with self._lock:
            if self._done.get(job.id, _NOBODYS)[0] != job.attempt:
                return
            del self._done[job.id]
            self._started.pop(job.id, None)
            for key in [key for key in self._latest if key[0] == job.id]:
                del self._latest[key]

    def close(self) -> None:
        """Write what is noted and stop."""
        super().close()
        with self._writing:
            self._write(self._take())
        self._webhooks.close()

    def step(self) -> float | None:
        self.pause(_GATHER_SECONDS)
        with self._writing:
            self._write(self._take())
        if self._latest:
            self.wake()
        self.pause(INTERVAL_SECONDS - _GATHER_SECONDS)
        return self._interval

    def _take(self, only: UUID | None = None) -> list[_Event]:
        """What was noted, and is so no more: all of one job, which ends, or one step of each."""
        with self._lock:
            begun = [job_id for job_id in self._started if only in (None, job_id)]
            events = [self._started.pop(job_id) for job_id in begun]
            if only is None:
                turns = {job_id: (job_id, index) for job_id, index in reversed(self._latest)}
                keys = list(turns.values())
            else:
                keys = [key for key in self._latest if key[0] == only]
            noted = {key: self._latest.pop(key) for key in keys}
            whole = {job_id: fmean(self._done[job_id][1].values()) for job_id, _ in keys}
            if only is not None:
                self._done.pop(only, None)
        for (job_id, index), update in noted.items():
            events.append((job_id, "progress", _progress(index, update, whole[job_id])))
            if update.preview_webp:
                events.append((job_id, "preview", _preview(index, update.preview_webp)))
        return events

    def _write(self, events: Sequence[_Event], ended_of: UUID | None = None) -> None:
        """Append events, and that a job of the batch `ended_of` has ended."""
        if not events or time.monotonic() < self._quiet_until:
            return
        try:
            with self._redis.pipeline(transaction=False) as pipeline:
                for job_id, kind, data in events:
                    append_event(pipeline, job_id, kind, data)
                if ended_of is not None:
                    append_end(pipeline, ended_of)
                pipeline.execute()
        except redis.RedisError as error:
            # A job's thread must not wait for a dead Redis at every event.
            self._quiet_until = time.monotonic() + _QUIET_SECONDS
            log.warning("events_not_written", error=type(error).__name__, count=len(events))


def _transition(job: Job) -> _Event:
    return job.id, "job", {"state": str(job.state), "sequence": job.sequence}


def _progress(index: int, update: StepUpdate, whole: float) -> dict[str, Any]:
    return {
        "image_index": index,
        "step": update.step,
        "steps": update.steps,
        "fraction": round(update.fraction, 4),
        "job_fraction": round(whole, 4),
    }


def _preview(index: int, webp: bytes) -> dict[str, Any]:
    return {
        "image_index": index,
        "content_type": "image/webp",
        "data": base64.b64encode(webp).decode("ascii"),
    }
