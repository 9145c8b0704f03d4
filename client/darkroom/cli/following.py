"""Follow a job on the terminal until it has ended."""

import threading
import time
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING

from darkroom.cli.live import JobView
from darkroom.cli.words import ago, plural

if TYPE_CHECKING:
    from darkroom import Job, JobEvent, JobHandle

_LOOK_SECONDS = 0.2
"""Waiting in short pieces lets Ctrl-C through on every system."""


def follow(handle: "JobHandle", view: JobView, timeout: float | None = None) -> "Job":
    """The job once it has ended, in whatever way.

    Raises:
        StillRunning: `timeout` seconds were over first. The job goes on.
    """
    from darkroom.errors import StillRunning

    arrivals: SimpleQueue[JobEvent | Exception | None] = SimpleQueue()
    # A stream may be silent for long; on a thread of its own it holds up neither the deadline nor
    # Ctrl-C. It ends with the job, or with the process.
    reader = threading.Thread(target=_read, args=(handle, view, arrivals), daemon=True)
    reader.start()
    deadline = None if timeout is None else time.monotonic() + timeout
    while True:
        if deadline is not None and time.monotonic() >= deadline:
            raise StillRunning(handle.job)
        try:
            arrived = arrivals.get(timeout=_LOOK_SECONDS)
        except Empty:
            continue
        if arrived is None:
            return handle.refresh()
        if isinstance(arrived, Exception):
            raise arrived
        _show(view, arrived)


def _read(
    handle: "JobHandle", view: JobView, arrivals: "SimpleQueue[JobEvent | Exception | None]"
) -> None:
    try:
        for event in handle.events(previews=view.wants_previews):
            arrivals.put(event)
        arrivals.put(None)
    except Exception as error:  # raised again where it can be reported
        arrivals.put(error)


def _show(view: JobView, event: "JobEvent") -> None:
    from darkroom import ImageMade, JobChanged, PreviewMade, ProgressMade

    if isinstance(event, JobChanged):
        view.words(words_of(event.job))
    elif isinstance(event, ProgressMade):
        words = f"step {event.step} of {event.steps}"
        view.step(event.image_index, event.fraction, words, event.job_fraction)
    elif isinstance(event, PreviewMade):
        view.picture(event.data)
    elif isinstance(event, ImageMade):
        view.step(event.image_index, 1.0, f"seed {event.seed} is done")


def words_of(job: "Job") -> str:
    """What the job is doing, in a few words."""
    if job.state == "queued":
        told = "queued"
        if job.queue_position:
            told += f", {plural(job.queue_position, 'job')} before it"
        return f"{told}, done {ago(job.eta.p50)}" if job.eta else told
    if job.state == "running" and job.cancel_requested:
        return "being canceled"
    return job.state
