# Generated from darkroom/_async by client/make_sync.py (`make client`). Do not edit.
"""Jobs: submit, wait, follow, cancel, retry, delete."""

import base64
import time
from collections.abc import Generator, Iterable, Mapping
from contextlib import closing
from dataclasses import replace
from datetime import datetime
from typing import Any, Unpack, cast

import httpx2

from darkroom import encoding
from darkroom._sync.concurrency import in_thread, sleep
from darkroom._sync.images import ImageHandle, Images, Uploads
from darkroom._sync.resource import Pages, Resource
from darkroom._sync.transport import Request, Transport
from darkroom.display import BAR_SECONDS, ImageList, progress_bar
from darkroom.encoding import Identified
from darkroom.errors import APIConnectionError, WaitTimeoutError, not_succeeded
from darkroom.retries import EventReader
from darkroom.types.images import Deleted, Image, Upload
from darkroom.types.jobs import Job, JobChanged, JobDryRun, JobEvent, JobStatus, StreamTicket
from darkroom.types.requests import FileSource, InitImage, JobOptions

_HOLD_SECONDS = 30
"""How long one answer is held while waiting; then the request is sent again."""
_MAX_INLINE = 11_000_000
"""Bytes of files in the body; as base64 they leave room below the service's 16 MiB."""
_NOT_SENT = "data:image/png;base64,"
"""Without bytes it stands for a file where only its presence matters."""


class JobHandle:
    """One job: from `client.jobs.submit(…)` or `client.jobs.handle(id)`."""

    def __init__(self, jobs: "Jobs", job_id: str, job: Job | None = None) -> None:
        self._jobs = jobs
        self.id = job_id
        self._last = job

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.id!r}, {self._last.state if self._last else '…'})"

    @property
    def job(self) -> Job:
        """The latest known state of the job; sends no request.

        Raises:
            LookupError: nothing is known yet; call `refresh()`.
        """
        if self._last is None:
            raise LookupError(f"Nothing is known of {self.id} yet: call refresh().")
        return self._last

    def refresh(self) -> Job:
        """The current state of the job."""
        return self._note(self._jobs.get(self.id))

    def status(self) -> JobStatus:
        """`Queued(position, eta)`, `Running(progress, …)`, `Succeeded(images)`, `Failed(error)`,
        `Canceled()` or `Expired()`."""
        return (self.refresh()).status

    def events(
        self, *, previews: bool | None = None, after: str | None = None
    ) -> Generator[JobEvent, None]:
        """The job's events as they happen; see `client.jobs.events`."""
        # A caller that stops iterating releases the connection at once.
        with closing(self._jobs.events(self.id, previews=previews, after=after)) as events:
            for event in events:
                if isinstance(event, JobChanged):
                    self._note(event.job)
                yield event

    def wait(self, timeout: float | None = None, progress: bool | None = None) -> Job:
        """The job once it has ended, however it ends; see `client.jobs.wait`."""
        return self._note(self._jobs.wait(self.id, timeout, progress))

    def result(
        self, timeout: float | None = None, progress: bool | None = None
    ) -> list[ImageHandle]:
        """Wait, then return the images in the order of the seeds; a notebook shows them.

        Args:
            timeout: seconds; None: as long as it takes.
            progress: whether to show a bar; by default in notebooks.

        Raises:
            JobFailed, JobCanceled, JobExpired: there are no images; `error.job` says why.
            WaitTimeoutError: it did not end within `timeout` seconds.
        """
        job = self.wait(timeout, progress)
        return ImageList(self._jobs.image_handles(job))

    def cancel(self) -> Job:
        """Cancel it: at once if queued, within a denoising step if running."""
        return self._note(self._jobs.cancel(self.id))

    def retry(self) -> Job:
        """Queue it again, with the same seeds, after it failed, expired or was canceled."""
        return self._note(self._jobs.retry(self.id))

    def delete(self) -> Deleted:
        """Permanently delete it and its images; it must have ended."""
        return self._jobs.delete(self.id)

    def _note(self, job: Job) -> Job:
        self._last = job
        return job


class Jobs(Resource):
    """`client.jobs`. Wherever a job is expected, its id works as well."""

    _path = "/v1/jobs"

    def __init__(self, transport: Transport, images: Images, uploads: Uploads) -> None:
        self._transport = transport
        self._images = images
        self._uploads = uploads
        images._jobs = self

    def submit(
        self,
        prompt: str,
        *,
        idempotency_key: str | None = None,
        wait: float | None = None,
        extra_body: Mapping[str, Any] | None = None,
        **options: Unpack[JobOptions],
    ) -> JobHandle:
        """Submit a job; its seeds are known at once (`handle.job.seeds`).

        Args:
            prompt: describes the image.
            idempotency_key: submitting again with the same key, even tomorrow or from another
                process, returns this job instead of a second one. By default each call gets
                its own, which makes its retries safe. With a key of yours, files are sent in
                the body, up to 11 MB in all, so that the same files are the same request; give
                larger ones as the id of an upload.
            wait: seconds for which the service may hold the answer until the job has ended.
            extra_body: fields that this version of the client does not know.
            options: see `JobOptions`.

        Raises:
            ValidationFailed: `errors` says which field breaks which rule.
            RateLimitError, ServiceUnavailableError: after retries too.
        """
        encoding.refuse_unknown(options, JobOptions)
        images = self._send_images(options, _MAX_INLINE if idempotency_key else 0)
        fields = {**options, "prompt": prompt, **(extra_body or {}), **images}
        headers = {"Idempotency-Key": idempotency_key or encoding.new_idempotency_key()}
        if wait is not None:
            headers["Prefer"] = f"wait={max(0, round(wait))}"
        request = Request(
            "POST", self._path, json=encoding.body(fields), headers=headers, waits=wait or 0.0
        )
        job = self._transport.fetch(Job, request)
        return JobHandle(self, job.id, job)

    def dry_run(self, prompt: str, **options: Unpack[JobOptions]) -> JobDryRun:
        """Check a submission and estimate its cost and completion, without submitting it.

        A file given as the initial image is sent only if the size depends on it; it is not stored.

        Raises:
            ValidationFailed: `errors` says which field breaks which rule.
            ModelNotAllowed, SizeNotAllowed: the key may not make such images.
        """
        encoding.refuse_unknown(options, JobOptions)
        fields = {**options, "prompt": prompt}
        is_sized = options.get("width") is not None and options.get("height") is not None
        for name in ("init_image", "mask_image"):
            given = options.get(name)
            if isinstance(given, Image | Upload):
                fields[name] = given.id
            elif isinstance(given, str):
                encoding.image_reference(given)
            elif given is not None:
                is_left_out = is_sized or name == "mask_image"
                fields[name] = _NOT_SENT
                if not is_left_out:
                    _, data = in_thread(encoding.read_file, cast("FileSource", given))
                    fields[name] = _data_url(data)
        for name, listed in _image_lists(options):
            fields[name] = [{**each, "image": _unsent(each["image"])} for each in listed]
        query = {"dry_run": True}
        return self._post(JobDryRun, self._path, query=query, json=fields, repeatable=True)

    def handle(self, job: str | Identified) -> JobHandle:
        """A handle for a job that was submitted before; sends no request."""
        return JobHandle(self, encoding.id_of(job), job if isinstance(job, Job) else None)

    def get(self, job: str | Identified) -> Job:
        """The current state of the job."""
        return self._get(Job, self._at(job))

    def list(
        self,
        *,
        state: str | Iterable[str] | None = None,
        session_id: str | None = None,
        created_after: datetime | None = None,
        created_before: datetime | None = None,
        page_size: int | None = None,
        after: str | None = None,
    ) -> Pages[Job]:
        """Jobs, newest first.

        Args:
            state: one state, or several.
            session_id: only jobs of this session.
            created_after: with a time zone.
            created_before: with a time zone.
            page_size: entries to fetch at a time, 1 to 200.
            after: where to continue: the `next_cursor` of a page.
        """
        return self._list(
            Job,
            self._path,
            page_size=page_size,
            after=after,
            state=state,
            session_id=session_id,
            created_after=created_after,
            created_before=created_before,
        )

    def wait(
        self, job: str | Identified, timeout: float | None = None, progress: bool | None = None
    ) -> Job:
        """The job once it has ended, however it ends.

        If the service restarts meanwhile, this keeps waiting.

        Args:
            job: the job or its id.
            timeout: seconds; None: as long as it takes.
            progress: whether to show a bar; by default in notebooks.

        Raises:
            WaitTimeoutError: it did not end within `timeout` seconds. The job continues.
            APIConnectionError: the service was down for longer than the client's `retry_timeout`.
        """
        deadline = None if timeout is None else time.monotonic() + timeout
        bar = progress_bar(progress)
        longest = _HOLD_SECONDS if bar is None else BAR_SECONDS
        while True:
            left = longest if deadline is None else deadline - time.monotonic()
            hold = max(0, min(longest, round(left)))
            request = Request(
                "GET",
                self._at(job),
                headers={"Prefer": f"wait={hold}"},
                waits=hold,
                retry_timeout=self._retry_timeout(deadline),
            )
            latest = self._transport.fetch(Job, request)
            if bar is not None:
                bar.show(latest)
            if latest.is_final:
                return latest
            if deadline is not None and time.monotonic() >= deadline:
                raise WaitTimeoutError(latest)
            sleep(0.05)  # less than half a second is left, too little for the header

    def events(
        self,
        job: str | Identified,
        *,
        previews: bool | None = None,
        after: str | None = None,
    ) -> Generator[JobEvent, None]:
        """A job's events as they happen, until it has ended.

        The first is the current state of the job. A broken connection is reopened after the last
        event; no event comes twice.

        Args:
            job: the job or its id.
            previews: True asks for small images of the work so far, False leaves them out.
            after: resume after the event with this id.

        Raises:
            APIConnectionError: the service was down for longer than the client's `retry_timeout`.
        """
        request = Request("GET", self._at(job, "events"), encoding.query({"previews": previews}))
        reader = EventReader(after)
        while True:
            opened = replace(
                request, headers=reader.headers, retry_timeout=self._retry_timeout(None)
            )
            try:
                with self._transport.stream(opened) as response:
                    if response.status_code == 204:
                        return  # the event to resume after was the last
                    for received in httpx2.EventSource(response):
                        event = reader.read(received)
                        if event is not None:
                            yield event
                        if reader.is_over:
                            return
            except APIConnectionError:
                # The connection broke: reopen it after the last event.
                if reader.outage.outlasts(self._transport.configuration.retry_timeout):
                    raise
            sleep(reader.pause())

    def stream_ticket(self, job: str | Identified) -> StreamTicket:
        """A URL for the job's events that needs no key, for a browser."""
        # Sending it twice only wastes a ticket.
        return self._post(StreamTicket, self._at(job, "stream-ticket"), repeatable=True)

    def images(self, job: str | Identified) -> Pages[Image]:
        """The finished images in the order of the seeds."""
        return self._list(Image, self._at(job, "images"))

    def image_handles(self, job: Job) -> tuple[ImageHandle, ...]:
        """The images of a job that has succeeded, with their methods.

        Raises:
            JobFailed, JobCanceled, JobExpired: it did not succeed.
            WaitTimeoutError: it has not ended.
        """
        if not job.is_final:
            raise WaitTimeoutError(job)
        if job.state != "succeeded":
            raise not_succeeded(job)
        return tuple(self._images.bind(image, job) for image in job.images)

    def cancel(self, job: str | Identified) -> Job:
        """Cancel it: at once if queued, within a denoising step if running. Idempotent."""
        return self._post(Job, self._at(job, "cancel"), repeatable=True)

    def retry(self, job: str | Identified) -> Job:
        """Queue a failed, expired or canceled job again, with its seeds and without deadlines."""
        return self._post(Job, self._at(job, "retry"))

    def delete(self, job: str | Identified) -> Deleted:
        """Permanently delete a job that has ended, with its images."""
        return self._delete(Deleted, self._at(job))

    def _send_images(self, options: Mapping[str, Any], room: int) -> dict[str, Any]:
        """The fields with images, of which files are uploaded: those beyond `room` bytes."""

        def sent(given: InitImage) -> str:
            nonlocal room
            if isinstance(given, str):
                return encoding.image_reference(given)
            if isinstance(given, Image | Upload):
                return given.id
            name, data = in_thread(encoding.read_file, given)
            if len(data) > room:
                return (self._uploads.send(name, data)).id
            room -= len(data)
            return _data_url(data)

        fields: dict[str, Any] = {}
        for name in ("init_image", "mask_image"):
            if (image := options.get(name)) is not None:
                fields[name] = sent(image)
        for name, listed in _image_lists(options):
            fields[name] = [{**each, "image": sent(each["image"])} for each in listed]
        return fields

    def _retry_timeout(self, deadline: float | None) -> float:
        longest = self._transport.configuration.retry_timeout
        return longest if deadline is None else min(longest, max(0, deadline - time.monotonic()))


def _image_lists(options: Mapping[str, Any]) -> list[tuple[str, Any]]:
    """Those of the options that list objects with an image each."""
    names = ("controls", "references")
    return [(name, options[name]) for name in names if options.get(name) is not None]


def _unsent(image: InitImage) -> str:
    """What a dry run says of an image that it does not need."""
    if isinstance(image, Image | Upload):
        return image.id
    return encoding.image_reference(image) if isinstance(image, str) else _NOT_SENT


def _data_url(data: bytes) -> str:
    # The service looks at the bytes, not at the type named here.
    return _NOT_SENT + base64.b64encode(data).decode("ascii")
