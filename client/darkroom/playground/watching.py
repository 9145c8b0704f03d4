"""Follows running jobs on threads of their own, so that drawing the page waits for nothing."""

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import streamlit as st

import darkroom
from darkroom.playground.connection import connect

_MOST_STREAMS = 48
"""Below the 64 event streams that one key may hold; further jobs are only polled."""
_RETRY_SECONDS = 1.0
_FORGET_SECONDS = 300.0


@dataclass
class Watched:
    """What is known of a job. Written by its thread, read by any drawing of any browser."""

    job: darkroom.Job
    steps: dict[int, tuple[int, int]] = field(default_factory=dict)
    """Image index → (step, steps)."""
    told: float = 0.0
    """How far the whole job is, as its latest event says; 0 where it does not."""
    previews: dict[int, bytes] = field(default_factory=dict)
    """Image index → the newest preview, WebP."""
    error: darkroom.DarkroomError | None = None
    """Why it can be followed no longer; the job itself may go on."""
    ended: float | None = None
    """By the monotonic clock, when the thread ended."""

    def take(self, event: darkroom.JobEvent) -> None:
        """Learns from an event of the job's stream."""
        match event:
            case darkroom.JobChanged(job=job):
                self.job = job
            case darkroom.ProgressMade(image_index=index, step=step, steps=steps):
                self.steps[index] = (step, steps)
                self.told = event.job_fraction or 0.0
            case darkroom.PreviewMade(image_index=index, data=picture):
                self.previews[index] = picture

    @property
    def fraction(self) -> float:
        """How far the whole job is, 0 to 1."""
        done = sum(step / steps for step, steps in self.steps.values() if steps)
        return min(1.0, max(self.told, done / max(1, len(self.job.seeds))))


class Watches:
    """Every job that some browser looks at; one for the whole process."""

    def __init__(self, client: darkroom.Client) -> None:
        """``client`` is shared with the drawing of the page; it is safe in threads."""
        self._client = client
        self._lock = threading.Lock()
        self._known: dict[str, Watched] = {}

    def follow(self, job: darkroom.Job) -> Watched:
        """What is known of the job; begins to follow it when nobody did so yet."""
        with self._lock:
            self._forget_old()
            known = self._known.get(job.id)
            if known is not None and known.job.sequence >= job.sequence:
                return known
            known = self._known[job.id] = Watched(job)
            alive = sum(one.ended is None for one in self._known.values())
            follow = self._stream if alive <= _MOST_STREAMS else self._poll
            threading.Thread(
                target=self._run, args=(known, follow), name=f"watch {job.id}", daemon=True
            ).start()
            return known

    def _run(self, watched: Watched, follow: Callable[[Watched], None]) -> None:
        while not watched.job.is_final:
            try:
                follow(watched)
                watched.error = None
            except darkroom.errors.NotFound as error:
                watched.error = error
                break
            except darkroom.DarkroomError as error:
                watched.error = error  # shown meanwhile; the job goes on without us
                time.sleep(_RETRY_SECONDS)
        watched.ended = time.monotonic()

    def _stream(self, watched: Watched) -> None:
        for event in self._client.jobs.events(watched.job.id):
            watched.take(event)

    def _poll(self, watched: Watched) -> None:
        watched.job = self._client.jobs.get(watched.job.id)
        if not watched.job.is_final:
            time.sleep(_RETRY_SECONDS)

    def _forget_old(self) -> None:
        past = time.monotonic() - _FORGET_SECONDS
        old = [id_ for id_, one in self._known.items() if one.ended and one.ended < past]
        for id_ in old:
            del self._known[id_]


@st.cache_resource(show_spinner=False)
def watches() -> Watches:
    """The process's watches."""
    return Watches(connect())
