"""Batches: thousands of prompts at once, and their results."""

import json
import time
from collections.abc import AsyncGenerator, Iterable, Mapping
from pathlib import Path
from typing import Any, Literal, Unpack

from darkroom import encoding
from darkroom._async.concurrency import in_thread, sleep
from darkroom._async.resource import AsyncPages, AsyncResource
from darkroom._async.transport import AsyncTransport, Request
from darkroom.decoding import decode
from darkroom.display import progress_bar
from darkroom.encoding import Identified
from darkroom.errors import APIConnectionError, APIResponseValidationError, WaitTimeoutError
from darkroom.retries import Outage
from darkroom.types.batches import (
    Batch,
    BatchDryRun,
    BatchError,
    BatchFile,
    BatchItem,
    BatchResult,
    RetryResult,
)
from darkroom.types.requests import BatchOptions, FileSource

Lines = Iterable[str | Mapping[str, Any]]
_POLL_SECONDS = 1.0
_INGEST_SECONDS = 120.0
"""Added to the timeout: 50,000 lines are checked and written before the answer."""


class AsyncBatchFiles(AsyncResource):
    """`client.batches.files`: files uploaded ahead, to make batches from; kept for a week."""

    _path = "/v1/batches/files"

    async def create(self, file: FileSource) -> BatchFile:
        """Upload JSONL or CSV, gzipped or not, 100 MB at most."""
        sent = await in_thread(encoding.read_file, file)
        request = Request(
            "POST",
            self._path,
            files={"file": sent},
            repeatable=True,
            waits=_INGEST_SECONDS,
        )
        return await self._transport.fetch(BatchFile, request)

    async def get(self, file: str | Identified) -> BatchFile:
        """A file's name, size and checksum."""
        return await self._get(BatchFile, self._at(file))

    async def delete(self, file: str | Identified) -> None:
        """Delete it; batches that were made from it stay."""
        await self._transport.send(Request("DELETE", self._at(file)))


class AsyncBatches(AsyncResource):
    """`client.batches`. Wherever a batch is expected, its id works as well."""

    _path = "/v1/batches"

    def __init__(self, transport: AsyncTransport) -> None:
        super().__init__(transport)
        self.files = AsyncBatchFiles(transport)

    async def submit(
        self,
        items: Lines | None = None,
        *,
        file: FileSource | None = None,
        upload_id: str | None = None,
        format: Literal["jsonl", "csv"] | None = None,  # noqa: A002 - as in the API
        idempotency_key: str | None = None,
        **options: Unpack[BatchOptions],
    ) -> Batch:
        """Make a batch of a list, a file, or an uploaded file; all lines are checked first.

        Args:
            items: prompts, or mappings with the fields of a job and `custom_id`, `matrix`, `zip`.
            file: JSONL or CSV, gzipped or not.
            upload_id: of `client.batches.files.create`.
            format: of the file, if its name does not tell.
            idempotency_key: submitting again with the same key returns this batch instead of a
                second one. By default each call gets its own.
            options: see `BatchOptions`.

        Raises:
            BatchRejected: nothing runs; `errors` has the first findings, and
                `client.batches.errors(error.batch_id)` all of them.
        """
        key = idempotency_key or encoding.new_idempotency_key()
        request = await self._submission(
            items, file, upload_id, format, options, dry_run=False, key=key
        )
        return await self._transport.fetch(Batch, request)

    async def dry_run(
        self,
        items: Lines | None = None,
        *,
        file: FileSource | None = None,
        upload_id: str | None = None,
        format: Literal["jsonl", "csv"] | None = None,  # noqa: A002 - as in the API
        **options: Unpack[BatchOptions],
    ) -> BatchDryRun:
        """Check a batch and count its jobs, without making it. Arguments as for `submit`."""
        request = await self._submission(items, file, upload_id, format, options, dry_run=True)
        return await self._transport.fetch(BatchDryRun, request)

    async def get(self, batch: str | Identified) -> Batch:
        """State, exact counts, rate and ETA."""
        return await self._get(Batch, self._at(batch))

    def list(
        self,
        *,
        state: str | Iterable[str] | None = None,
        page_size: int | None = None,
        after: str | None = None,
    ) -> AsyncPages[Batch]:
        """Batches, newest first, in one state or several."""
        return self._list(Batch, self._path, page_size=page_size, after=after, state=state)

    async def wait(
        self, batch: str | Identified, timeout: float | None = None, progress: bool | None = None
    ) -> Batch:
        """The batch once it has ended, however it ends.

        Args:
            batch: the batch or its id.
            timeout: seconds; None: as long as it takes.
            progress: whether to show a bar; by default in notebooks.

        Raises:
            WaitTimeoutError: it did not end within `timeout` seconds. The batch continues.
        """
        deadline = None if timeout is None else time.monotonic() + timeout
        bar = progress_bar(progress)
        while True:
            request = Request("GET", self._at(batch), retry_timeout=self._retry_timeout)
            latest = await self._transport.fetch(Batch, request)
            if bar is not None:
                bar.show(latest)
            if latest.is_final:
                return latest
            left = _POLL_SECONDS if deadline is None else deadline - time.monotonic()
            if left <= 0:
                raise WaitTimeoutError(latest)
            await sleep(min(_POLL_SECONDS, left))

    def items(
        self,
        batch: str | Identified,
        *,
        state: str | Iterable[str] | None = None,
        custom_id: str | None = None,
        page_size: int | None = None,
        after: str | None = None,
    ) -> AsyncPages[BatchItem]:
        """Its jobs in the order of the file's lines, with their images so far."""
        return self._list(
            BatchItem,
            self._at(batch, "items"),
            page_size=page_size,
            after=after,
            state=state,
            custom_id=custom_id,
        )

    async def results(
        self, batch: str | Identified, *, follow: bool = True
    ) -> AsyncGenerator[BatchResult, None]:
        """Jobs as they end, until the batch has ended; each once, even if connections break.

        Args:
            batch: the batch or its id.
            follow: False: only those that have already ended.

        Raises:
            APIConnectionError: the service was down for longer than the client's `retry_timeout`.
        """
        request = Request(
            "GET",
            self._at(batch, "results"),
            encoding.query({"follow": follow}),
            retry_timeout=self._retry_timeout,
        )
        seen: set[tuple[str, object]] = set()
        outage = Outage()
        while True:
            try:
                async with self._transport.stream(request) as response:
                    async for line in response.aiter_lines():
                        outage.is_over()
                        if not line.strip():
                            continue
                        result = decode(BatchResult, _parse(line))
                        if (mark := (result.job_id, result.finished_at)) not in seen:
                            seen.add(mark)
                            yield result
            except APIConnectionError:
                if outage.outlasts(self._retry_timeout):
                    raise
                await sleep(_POLL_SECONDS)
                continue
            # A stream lasts ten minutes at most: only the batch itself tells whether it has ended.
            if not follow or (await self.get(batch)).is_final:
                return

    async def errors(self, batch: str | Identified) -> AsyncGenerator[BatchError, None]:
        """The findings of validation, then the jobs that did not succeed so far."""
        async with self._transport.stream(Request("GET", self._at(batch, "errors"))) as response:
            async for line in response.aiter_lines():
                if line.strip():
                    yield decode(BatchError, _parse(line))

    async def archive(self, batch: str | Identified, path: str | Path) -> Path:
        """Write the images made so far as a ZIP of `custom_id_seed.png`; return its path.

        Raises:
            APIConnectionError: the connection broke; nothing is left at `path`. Call again.
        """
        target = Path(path)
        partial = target.with_name(f".{target.name}.part")
        await in_thread(target.parent.mkdir, parents=True, exist_ok=True)
        try:
            async with self._transport.stream(
                Request("GET", self._at(batch, "archive"))
            ) as response:
                with partial.open("wb") as file:
                    async for piece in response.aiter_bytes():
                        file.write(piece)
            await in_thread(partial.replace, target)
        finally:
            await in_thread(partial.unlink, missing_ok=True)
        return target

    async def contact_sheet(
        self, batch: str | Identified, *, limit: int | None = None, columns: int | None = None
    ) -> bytes:
        """One WebP with thumbnails of the first images made so far.

        Raises:
            NotFoundError: there is no image yet.
        """
        query = encoding.query({"limit": limit, "columns": columns})
        request = Request("GET", self._at(batch, "contact-sheet"), query)
        return (await self._transport.send(request)).content

    async def pause(self, batch: str | Identified) -> Batch:
        """Let running jobs finish and start no others; deadlines still apply."""
        return await self._post(Batch, self._at(batch, "pause"), repeatable=True)

    async def resume(self, batch: str | Identified) -> Batch:
        """Continue a paused batch."""
        return await self._post(Batch, self._at(batch, "resume"), repeatable=True)

    async def cancel(self, batch: str | Identified) -> Batch:
        """Cancel queued jobs at once, running ones within a step; images stay."""
        return await self._post(Batch, self._at(batch, "cancel"), repeatable=True)

    async def update(self, batch: str | Identified, *, priority: int) -> Batch:
        """Change its priority, 0 to 9: higher ones go before the key's other batches."""
        request = Request("PATCH", self._at(batch), json={"priority": priority})
        return await self._transport.fetch(Batch, request)

    async def retry_failed(self, batch: str | Identified) -> RetryResult:
        """Queue failed and expired jobs again, with the same seeds and without deadlines.

        Raises:
            NothingToRetry: no job has failed or expired.
        """
        return await self._post(RetryResult, self._at(batch, "retry-failed"))

    @property
    def _retry_timeout(self) -> float:
        return self._transport.configuration.retry_timeout

    async def _submission(
        self,
        items: Lines | None,
        file: FileSource | None,
        upload_id: str | None,
        format_name: str | None,
        options: BatchOptions,
        *,
        dry_run: bool,
        key: str | None = None,
    ) -> Request:
        """The request of a submission: a list and options as JSON, a file as a form."""
        if sum(source is not None for source in (items, file, upload_id)) != 1:
            raise ValueError("Give one of items, file and upload_id.")
        encoding.refuse_unknown(options, BatchOptions)
        fields = encoding.body({**options, "format": format_name, "upload_id": upload_id})
        form = files = content = None
        if file is not None:
            files = {"file": await in_thread(encoding.read_file, file)}
            form = {
                name: value if isinstance(value, str) else json.dumps(value)
                for name, value in fields.items()
            }
        else:
            content = fields | ({} if items is None else {"items": list(items)})
        return Request(
            "POST",
            self._path,
            encoding.query({"dry_run": dry_run or None}),
            json=content,
            data=form,
            files=files,
            headers={"Idempotency-Key": key} if key else {},
            repeatable=True if dry_run else None,
            waits=_INGEST_SECONDS,
        )


def _parse(line: str) -> Any:
    try:
        return json.loads(line)
    except ValueError as error:
        raise APIResponseValidationError("A line of the stream is not JSON.") from error
