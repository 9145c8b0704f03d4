# Generated from darkroom/_async by client/make_sync.py (`make client`). Do not edit.
"""A handle for one job, from its submission to its pictures."""

from collections.abc import Generator
from contextlib import closing
from typing import TYPE_CHECKING

from darkroom._sync.images import Picture
from darkroom.types.events import JobChanged, JobEvent
from darkroom.types.images import Deleted
from darkroom.types.jobs import Job, JobStatus

if TYPE_CHECKING:
    from darkroom._sync.jobs import Jobs


class JobHandle:
    """One job, whatever becomes of it: `client.jobs.submit(…)` or `client.jobs.handle(id)`."""

    def __init__(self, jobs: "Jobs", job_id: str, job: Job | None = None) -> None:
        self._jobs = jobs
        self.id = job_id
        self._last = job

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.id!r}, {self._last.state if self._last else '…'})"

    @property
    def job(self) -> Job:
        """The job as it was last heard of; asks nothing.

        Raises:
            LookupError: nothing was heard of it yet: `refresh()`.
        """
        if self._last is None:
            raise LookupError(f"Nothing is known of {self.id} yet: call refresh().")
        return self._last

    def refresh(self) -> Job:
        """The job as it stands."""
        return self._note(self._jobs.get(self.id))

    def status(self) -> JobStatus:
        """`Queued(position, eta)`, `Running(progress, …)`, `Succeeded(images)`, `Failed(error)`,
        `Canceled()` or `Expired()`."""
        return (self.refresh()).status

    def events(
        self, *, previews: bool | None = None, after: str | None = None
    ) -> Generator[JobEvent, None]:
        """What happens, as it happens; see `client.jobs.events`."""
        # Who stops listening gives the connection back at once.
        with closing(self._jobs.events(self.id, previews=previews, after=after)) as events:
            for event in events:
                if isinstance(event, JobChanged):
                    self._note(event.job)
                yield event

    def wait(self, timeout: float | None = None) -> Job:
        """The job once it has ended, in whatever way; see `client.jobs.wait`."""
        return self._note(self._jobs.wait(self.id, timeout))

    def result(self, timeout: float | None = None) -> list[Picture]:
        """Wait, and get the pictures in the order of the seeds.

        Raises:
            JobFailed, JobCanceled, JobExpired: there are none; `error.job` says why.
            StillRunning: `timeout` seconds were over first.
        """
        job = self.wait(timeout)
        return list(self._jobs.pictures(job))

    def cancel(self) -> Job:
        """Cancel it: at once when queued, within a denoising step when running."""
        return self._note(self._jobs.cancel(self.id))

    def retry(self) -> Job:
        """Queue it again after it failed, expired or was canceled, with the same seeds."""
        return self._note(self._jobs.retry(self.id))

    def delete(self) -> Deleted:
        """Delete it with its pictures, for good, once it has ended."""
        return self._jobs.delete(self.id)

    def _note(self, job: Job) -> Job:
        self._last = job
        return job
