"""Follow a job on the terminal until it ends: on stderr, a bar with the latest preview above."""

import threading
import time
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING, Self

from darkroom.cli.output import Output, ago, plural
from darkroom.cli.previews import PreviewMode, can_animate, choose, half_blocks
from darkroom.errors import WaitTimeoutError
from darkroom.types import ImageMade, JobChanged, PreviewMade, ProgressMade

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.live import Live
    from rich.progress import Progress, TaskID

    from darkroom import Job, JobEvent, JobHandle

_POLL_SECONDS = 0.2
"""Waiting in short intervals lets Ctrl-C through on every system."""


def wants_previews(output: Output, preview: PreviewMode) -> bool:
    """Whether previews of running work would be seen."""
    return output.is_live and can_animate(choose(preview, output.err), output.err)


class JobView:
    """Redraws itself on a terminal; elsewhere it prints what changed, a line at a time."""

    def __init__(self, output: Output, label: str, images: int, preview: PreviewMode) -> None:
        self._output = output
        self._label = label
        self._images = images
        self._fractions: dict[int, float] = {}
        self._preview: RenderableType | None = None
        self.wants_previews = wants_previews(output, preview)
        self._last_status: str | None = None
        self._live: Live | None = None
        self._bar: Progress | None = None
        self._task: TaskID | None = None

    def status(self, status: str) -> None:
        """Say what is happening, e.g. `queued, 3 jobs ahead`."""
        if self._bar is not None and self._task is not None:
            self._bar.update(self._task, status=status)
        elif status != self._last_status:
            self._output.note(f"{self._label}: {status}")
        self._last_status = status

    def step(self, image: int, fraction: float, status: str, whole: float | None = None) -> None:
        """One image is `fraction` (0 to 1) done, and the job `whole`, where that is known."""
        self._fractions[image] = fraction
        if self._bar is not None and self._task is not None:
            done = sum(self._fractions.values()) / self._images
            self._bar.update(self._task, completed=max(done, whole or 0.0), status=status)

    def preview(self, data: bytes) -> None:
        """Show the latest preview."""
        drawn = half_blocks(data) if self.wants_previews else None
        if drawn is not None and self._live is not None:
            self._preview = drawn
            self._live.update(self._drawn())

    def _drawn(self) -> "RenderableType":
        from rich.console import Group

        assert self._bar is not None  # noqa: S101
        return self._bar if self._preview is None else Group(self._preview, self._bar)

    def __enter__(self) -> Self:
        if not self._output.is_live:
            return self
        from rich.live import Live
        from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn

        self._bar = Progress(
            TextColumn("[bold]{task.description}"),
            BarColumn(bar_width=28),
            TaskProgressColumn(),
            TextColumn("[dim]{task.fields[status]}"),
            console=self._output.err,
        )
        self._task = self._bar.add_task(self._label, total=1.0, status="")
        self._live = Live(self._bar, console=self._output.err, refresh_per_second=8, transient=True)
        self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._live is not None:
            self._live.stop()


def follow(handle: "JobHandle", view: JobView, timeout: float | None = None) -> "Job":
    """Wait until the job has ended, in whatever way.

    Raises:
        WaitTimeoutError: `timeout` seconds passed first. The job continues.
    """
    arrivals: SimpleQueue[JobEvent | Exception | None] = SimpleQueue()
    # A stream may be silent for long; on its own thread it delays neither the deadline nor Ctrl-C.
    # The thread ends with the job, or with the process.
    threading.Thread(target=_read, args=(handle, view, arrivals), daemon=True).start()
    deadline = None if timeout is None else time.monotonic() + timeout
    while True:
        if deadline is not None and time.monotonic() >= deadline:
            raise WaitTimeoutError(handle.job)
        try:
            arrived = arrivals.get(timeout=_POLL_SECONDS)
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
    if isinstance(event, JobChanged):
        view.status(status_of(event.job))
    elif isinstance(event, ProgressMade):
        status = f"step {event.step} of {event.steps}"
        view.step(event.image_index, event.fraction, status, event.job_fraction)
    elif isinstance(event, PreviewMade):
        view.preview(event.data)
    elif isinstance(event, ImageMade):
        view.step(event.image_index, 1.0, f"seed {event.seed} is done")


def status_of(job: "Job") -> str:
    """What the job is doing, in a few words."""
    if job.state == "queued":
        status = "queued"
        if job.queue_position:
            least = "at least " if job.queue_position_exact is False else ""
            status += f", {least}{plural(job.queue_position, 'job')} ahead"
        return f"{status}, done {ago(job.eta.p50)}" if job.eta else status
    if job.state == "running" and job.cancel_requested:
        return "being canceled"
    return job.state
