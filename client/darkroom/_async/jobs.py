"""Jobs: submit, wait, follow, steer."""

import base64
import time
from collections.abc import AsyncGenerator, Iterable
from dataclasses import replace
from datetime import datetime
from typing import TYPE_CHECKING, Any, Unpack

import httpx2

from darkroom import wire
from darkroom._async.concurrency import in_thread, sleep
from darkroom._async.handles import AsyncJobHandle
from darkroom._async.images import AsyncImages, AsyncPicture
from darkroom._async.pages import AsyncPages
from darkroom._async.transport import AsyncTransport, Request
from darkroom._async.uploads import AsyncUploads
from darkroom.decoding import decode
from darkroom.errors import NoAnswer, StillRunning, not_succeeded
from darkroom.resuming import EventReader
from darkroom.types.events import JobEvent
from darkroom.types.images import Deleted, Image, Upload
from darkroom.types.jobs import Job, JobDryRun, StreamTicket
from darkroom.types.requests import FileSource, InitImage, JobOptions

if TYPE_CHECKING:
    from darkroom.wire import Identified

_HOLD_SECONDS = 30
"""For which one answer is held while waiting; then it is asked again."""
_NOT_SENT = "data:image/png;base64,"
"""Stands, without any bytes, for a file where only its presence matters."""


class AsyncJobs:
    """`client.jobs`. Wherever a job is asked for, its id does as well."""

    def __init__(
        self, transport: AsyncTransport, images: AsyncImages, uploads: AsyncUploads
    ) -> None:
        self._transport = transport
        self._images = images
        self._uploads = uploads

    async def submit(
        self,
        prompt: str,
        *,
        idempotency_key: str | None = None,
        wait: float | None = None,
        **options: Unpack[JobOptions],
    ) -> AsyncJobHandle:
        """Accept a job in milliseconds; its seeds are known at once (`handle.job.seeds`).

        Args:
            prompt: what to show.
            idempotency_key: names this one wish, so that asking again, even tomorrow or from
                another process, gets this job and no second one. Without it one is made for
                this call, which makes its retries safe.
            wait: seconds for which the service may hold its answer until the job has ended.
            options: see `JobOptions`.

        Raises:
            ValidationFailed: `errors` says which field breaks which rule.
            TooManyRequests, Unavailable: also after retries.
        """
        fields = {**options, "prompt": prompt}
        if options.get("init_image") is not None:
            fields["init_image"] = await self._initial_image(options["init_image"])
        headers = {"Idempotency-Key": idempotency_key or wire.new_idempotency_key()}
        if wait is not None:
            headers["Prefer"] = f"wait={max(0, round(wait))}"
        asked = Request(
            "POST", "/v1/jobs", json=wire.body(fields), headers=headers, waits=wait or 0.0
        )
        job = decode(Job, await self._transport.json(asked))
        return AsyncJobHandle(self, job.id, job)

    async def dry_run(self, prompt: str, **options: Unpack[JobOptions]) -> JobDryRun:
        """Check a submission, and say its cost and when it would be done; submits nothing.

        A file as the initial image is sent only where the size follows it; nothing of it is kept.

        Raises:
            ValidationFailed: `errors` says which field breaks which rule.
            ModelNotAllowed, SizeNotAllowed: the key may not have such pictures made.
        """
        fields = {**options, "prompt": prompt}
        given = options.get("init_image")
        if isinstance(given, Image | Upload):
            fields["init_image"] = given.id
        elif given is not None and not isinstance(given, str):
            is_sized = options.get("width") is not None and options.get("height") is not None
            fields["init_image"] = _NOT_SENT if is_sized else await _data_url(given)
        query = wire.query({"dry_run": True})
        asked = Request("POST", "/v1/jobs", query, json=wire.body(fields), repeatable=True)
        return decode(JobDryRun, await self._transport.json(asked))

    def handle(self, job: "str | Identified") -> AsyncJobHandle:
        """The handle of a job that was submitted before. Asks nothing."""
        return AsyncJobHandle(self, wire.id_of(job), job if isinstance(job, Job) else None)

    async def get(self, job: "str | Identified") -> Job:
        """The job as it stands."""
        return decode(Job, await self._transport.json(Request("GET", _path(job))))

    def list(
        self,
        *,
        state: str | Iterable[str] | None = None,
        session_id: str | None = None,
        created_after: datetime | None = None,
        created_before: datetime | None = None,
        page_size: int | None = None,
        after: str | None = None,
    ) -> AsyncPages[Job]:
        """Jobs, newest first.

        Args:
            state: one state, or several.
            session_id: of this session only.
            created_after: with a time zone.
            created_before: with a time zone.
            page_size: entries to fetch at a time, 1 to 200.
            after: where to go on: the `next_cursor` of a page.
        """
        fields = {
            "state": wire.states(state),
            "session_id": session_id,
            "created_after": created_after,
            "created_before": created_before,
            "limit": page_size,
        }
        return AsyncPages(
            self._transport, Request("GET", "/v1/jobs", wire.query(fields)), Job, after
        )

    async def wait(self, job: "str | Identified", timeout: float | None = None) -> Job:
        """The job once it has ended, in whatever way.

        A service that restarts meanwhile is waited for.

        Args:
            job: the job or its id.
            timeout: seconds; None: as long as it takes.

        Raises:
            StillRunning: `timeout` seconds were over first. The job goes on.
            NoAnswer: the service was away for longer than the client's `patience`.
        """
        deadline = None if timeout is None else time.monotonic() + timeout
        while True:
            left = _HOLD_SECONDS if deadline is None else deadline - time.monotonic()
            hold = max(0, min(_HOLD_SECONDS, round(left)))
            asked = Request(
                "GET",
                _path(job),
                headers={"Prefer": f"wait={hold}"},
                waits=hold,
                patience=self._patience(deadline),
            )
            found = decode(Job, await self._transport.json(asked))
            if found.is_final:
                return found
            if deadline is not None and time.monotonic() >= deadline:
                raise StillRunning(found)
            await sleep(0.05)  # less than half a second is left, which a header cannot say

    async def events(
        self,
        job: "str | Identified",
        *,
        previews: bool | None = None,
        after: str | None = None,
    ) -> AsyncGenerator[JobEvent, None]:
        """What happens to a job, as it happens, until it has ended.

        Begins with the job as it is. A connection that breaks is made again, behind the last
        event; no event comes twice.

        Args:
            job: the job or its id.
            previews: True asks for small pictures of the work, False leaves them out.
            after: go on behind the event of this id.

        Raises:
            NoAnswer: the service was away for longer than the client's `patience`.
        """
        asked = Request("GET", f"{_path(job)}/events", wire.query({"previews": previews}))
        reader = EventReader(after)
        while True:
            opened = replace(asked, headers=reader.headers, patience=self._patience(None))
            try:
                async with self._transport.stream(opened) as response:
                    if response.status_code == 204:
                        return  # the event to go on behind was the last
                    async for told in httpx2.EventSource(response):
                        event = reader.read(told)
                        if event is not None:
                            yield event
                        if reader.is_over:
                            return
            except NoAnswer:
                # It broke: open it again, behind what has come.
                if reader.outage.outlasts(self._transport.configuration.patience):
                    raise
            await sleep(reader.pause())

    async def stream_ticket(self, job: "str | Identified") -> StreamTicket:
        """A URL that follows the job without a key, for a browser."""
        # Twice is harmless: a ticket that nobody uses.
        asked = Request("POST", f"{_path(job)}/stream-ticket", repeatable=True)
        return decode(StreamTicket, await self._transport.json(asked))

    def images(self, job: "str | Identified") -> AsyncPages[Image]:
        """The finished pictures in the order of the seeds."""
        return AsyncPages(self._transport, Request("GET", f"{_path(job)}/images"), Image)

    def pictures(self, job: Job) -> tuple[AsyncPicture, ...]:
        """The pictures of a job that has succeeded, with their methods.

        Raises:
            JobFailed, JobCanceled, JobExpired: it has not.
            StillRunning: it has not ended.
        """
        if not job.is_final:
            raise StillRunning(job)
        if job.state != "succeeded":
            raise not_succeeded(job)
        return tuple(self._images.bind(image, job) for image in job.images)

    async def cancel(self, job: "str | Identified") -> Job:
        """Cancel: at once when queued, within a denoising step when running. May be repeated."""
        asked = Request("POST", f"{_path(job)}/cancel", repeatable=True)
        return decode(Job, await self._transport.json(asked))

    async def retry(self, job: "str | Identified") -> Job:
        """Queue a failed, expired or canceled job again, with its seeds and no deadlines."""
        asked = Request("POST", f"{_path(job)}/retry")
        return decode(Job, await self._transport.json(asked))

    async def delete(self, job: "str | Identified") -> Deleted:
        """Delete an ended job with its pictures, for good."""
        return decode(Deleted, await self._transport.json(Request("DELETE", _path(job))))

    async def _initial_image(self, given: InitImage | None) -> Any:
        if given is None or isinstance(given, str):
            return given
        if isinstance(given, Image | Upload):
            return given.id
        name, data = await in_thread(wire.read_file, given)
        return (await self._uploads.send(name, data)).id

    def _patience(self, deadline: float | None) -> float:
        longest = self._transport.configuration.patience
        return longest if deadline is None else min(longest, max(0, deadline - time.monotonic()))


async def _data_url(file: FileSource) -> str:
    _, data = await in_thread(wire.read_file, file)
    # The service looks at the bytes, not at the type that is said here.
    return _NOT_SENT + base64.b64encode(data).decode("ascii")


def _path(job: "str | Identified") -> str:
    return f"/v1/jobs/{wire.segment(job)}"
