"""Batches: thousands of prompts at once, and what comes of them."""

import json
import time
from collections.abc import AsyncGenerator, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Unpack

from darkroom import wire
from darkroom._async.concurrency import in_thread, sleep
from darkroom._async.pages import AsyncPages
from darkroom._async.transport import AsyncTransport, Request
from darkroom.decoding import decode
from darkroom.errors import NoAnswer, StillRunning, UnexpectedAnswer
from darkroom.resuming import Outage
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

if TYPE_CHECKING:
    from darkroom.wire import Identified

Lines = Iterable[str | Mapping[str, Any]]
_POLL_SECONDS = 1.0
_INGEST_SECONDS = 120.0
"""Beyond the usual timeout: 50,000 lines are checked and written before the answer."""


class AsyncBatchFiles:
    """`client.batches.files`: files sent ahead, from which batches are made; kept for a week."""

    def __init__(self, transport: AsyncTransport) -> None:
        self._transport = transport

    async def create(self, file: FileSource) -> BatchFile:
        """Send JSONL or CSV, gzipped or not, 100 MB at most."""
        sent = await in_thread(wire.read_file, file)
        asked = Request(
            "POST",
            "/v1/batches/files",
            files={"file": sent},
            repeatable=True,
            waits=_INGEST_SECONDS,
        )
        return decode(BatchFile, await self._transport.json(asked))

    async def get(self, file: "str | Identified") -> BatchFile:
        """What is known of it."""
        return decode(BatchFile, await self._transport.json(Request("GET", self._path(file))))

    async def delete(self, file: "str | Identified") -> None:
        """Delete it; batches that were made of it stay."""
        await self._transport.send(Request("DELETE", self._path(file)))

    def _path(self, file: "str | Identified") -> str:
        return f"/v1/batches/files/{wire.segment(file)}"


class AsyncBatches:
    """`client.batches`. Wherever a batch is asked for, its id does as well."""

    def __init__(self, transport: AsyncTransport) -> None:
        self._transport = transport
        self.files = AsyncBatchFiles(transport)

    async def submit(
        self,
        items: Lines | None = None,
        *,
        file: FileSource | None = None,
        upload_id: str | None = None,
        format: Literal["jsonl", "csv"] | None = None,  # noqa: A002 - the name on the wire
        idempotency_key: str | None = None,
        **options: Unpack[BatchOptions],
    ) -> Batch:
        """Make a batch of a list, a file, or a file sent ahead; all its lines are checked first.

        Args:
            items: prompts, or mappings with the fields of a job and `custom_id`, `matrix`, `zip`.
            file: JSONL or CSV, gzipped or not.
            upload_id: of `client.batches.files.create`.
            format: of the file, where its name does not say it.
            idempotency_key: names this one wish: asking again gets this batch and no second one.
                Without it one is made for this call.
            options: see `BatchOptions`.

        Raises:
            BatchRejected: nothing of it runs; `errors` has the first findings, and
                `client.batches.errors(error.batch_id)` all.
        """
        key = idempotency_key or wire.new_idempotency_key()
        asked = await self._submission(
            items, file, upload_id, format, options, dry_run=False, key=key
        )
        return decode(Batch, await self._transport.json(asked))

    async def dry_run(
        self,
        items: Lines | None = None,
        *,
        file: FileSource | None = None,
        upload_id: str | None = None,
        format: Literal["jsonl", "csv"] | None = None,  # noqa: A002 - the name on the wire
        **options: Unpack[BatchOptions],
    ) -> BatchDryRun:
        """Check a batch and count what it would be; nothing is kept. Arguments as of `submit`."""
        asked = await self._submission(items, file, upload_id, format, options, dry_run=True)
        return decode(BatchDryRun, await self._transport.json(asked))

    async def get(self, batch: "str | Identified") -> Batch:
        """State, exact counts, rate and ETA."""
        return decode(Batch, await self._transport.json(Request("GET", _path(batch))))

    def list(
        self,
        *,
        state: str | Iterable[str] | None = None,
        page_size: int | None = None,
        after: str | None = None,
    ) -> AsyncPages[Batch]:
        """Batches, newest first, of one state or several."""
        fields = {"state": wire.states(state), "limit": page_size}
        asked = Request("GET", "/v1/batches", wire.query(fields))
        return AsyncPages(self._transport, asked, Batch, after)

    async def wait(self, batch: "str | Identified", timeout: float | None = None) -> Batch:
        """The batch once it has ended, in whatever way.

        Raises:
            StillRunning: `timeout` seconds were over first. The batch goes on.
        """
        deadline = None if timeout is None else time.monotonic() + timeout
        while True:
            asked = Request("GET", _path(batch), patience=self._patience)
            found = decode(Batch, await self._transport.json(asked))
            if found.is_final:
                return found
            left = _POLL_SECONDS if deadline is None else deadline - time.monotonic()
            if left <= 0:
                raise StillRunning(found)
            await sleep(min(_POLL_SECONDS, left))

    def items(
        self,
        batch: "str | Identified",
        *,
        state: str | Iterable[str] | None = None,
        custom_id: str | None = None,
        page_size: int | None = None,
        after: str | None = None,
    ) -> AsyncPages[BatchItem]:
        """Its jobs in the order of the file's lines, with their pictures so far."""
        fields = {"state": wire.states(state), "custom_id": custom_id, "limit": page_size}
        asked = Request("GET", f"{_path(batch)}/items", wire.query(fields))
        return AsyncPages(self._transport, asked, BatchItem, after)

    async def results(
        self, batch: "str | Identified", *, follow: bool = True
    ) -> AsyncGenerator[BatchResult, None]:
        """Jobs as they end, until the batch has; each once, also over broken connections.

        Args:
            batch: the batch or its id.
            follow: False: only those that have ended by now.

        Raises:
            NoAnswer: the service was away for longer than the client's `patience`.
        """
        asked = Request(
            "GET",
            f"{_path(batch)}/results",
            wire.query({"follow": follow}),
            patience=self._patience,
        )
        seen: set[tuple[str, object]] = set()
        outage = Outage()
        while True:
            try:
                async with self._transport.stream(asked) as response:
                    async for line in response.aiter_lines():
                        outage.is_over()
                        if not line.strip():
                            continue
                        result = decode(BatchResult, _parse(line))
                        if (mark := (result.job_id, result.finished_at)) not in seen:
                            seen.add(mark)
                            yield result
            except NoAnswer:
                if outage.outlasts(self._patience):
                    raise
                await sleep(_POLL_SECONDS)
                continue
            # A stream lasts ten minutes at most: only the batch itself says that it is over.
            if not follow or (await self.get(batch)).is_final:
                return

    async def errors(self, batch: "str | Identified") -> AsyncGenerator[BatchError, None]:
        """What validation found, then jobs without success so far."""
        async with self._transport.stream(Request("GET", f"{_path(batch)}/errors")) as response:
            async for line in response.aiter_lines():
                if line.strip():
                    yield decode(BatchError, _parse(line))

    async def archive(self, batch: "str | Identified", path: str | Path) -> Path:
        """Write the pictures made so far as a ZIP of `custom_id_seed.png`. Returns where it is.

        Raises:
            NoAnswer: the connection broke; nothing is left at `path`. Ask again.
        """
        target = Path(path)
        partial = target.with_name(f".{target.name}.part")
        await in_thread(target.parent.mkdir, parents=True, exist_ok=True)
        try:
            async with self._transport.stream(
                Request("GET", f"{_path(batch)}/archive")
            ) as response:
                with partial.open("wb") as file:
                    async for piece in response.aiter_bytes():
                        file.write(piece)
            await in_thread(partial.replace, target)
        finally:
            await in_thread(partial.unlink, missing_ok=True)
        return target

    async def contact_sheet(
        self, batch: "str | Identified", *, limit: int | None = None, columns: int | None = None
    ) -> bytes:
        """One WebP of thumbnails of the first pictures made so far.

        Raises:
            NotFound: there is no picture yet.
        """
        query = wire.query({"limit": limit, "columns": columns})
        asked = Request("GET", f"{_path(batch)}/contact-sheet", query)
        return (await self._transport.send(asked)).content

    async def pause(self, batch: "str | Identified") -> Batch:
        """Running jobs end, no other starts; deadlines go on counting."""
        return await self._steer(batch, "pause")

    async def resume(self, batch: "str | Identified") -> Batch:
        """Go on where it stood."""
        return await self._steer(batch, "resume")

    async def cancel(self, batch: "str | Identified") -> Batch:
        """Waiting jobs end at once, running ones within a step; pictures stay."""
        return await self._steer(batch, "cancel")

    async def update(self, batch: "str | Identified", *, priority: int) -> Batch:
        """Change its priority, 0 to 9: a higher one goes before the key's other batches."""
        asked = Request("PATCH", _path(batch), json={"priority": priority})
        return decode(Batch, await self._transport.json(asked))

    async def retry_failed(self, batch: "str | Identified") -> RetryResult:
        """Queue again what failed or expired, with the same seeds and no deadlines.

        Raises:
            NothingToRetry: nothing has.
        """
        asked = Request("POST", f"{_path(batch)}/retry-failed")
        return decode(RetryResult, await self._transport.json(asked))

    async def _steer(self, batch: "str | Identified", verb: str) -> Batch:
        asked = Request("POST", f"{_path(batch)}/{verb}", repeatable=True)
        return decode(Batch, await self._transport.json(asked))

    @property
    def _patience(self) -> float:
        return self._transport.configuration.patience

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
        """The request of a submission; a list and options as JSON, a file as a form."""
        if sum(source is not None for source in (items, file, upload_id)) != 1:
            raise ValueError("Give one of items, file and upload_id.")
        fields = wire.body({**options, "format": format_name, "upload_id": upload_id})
        form = files = content = None
        if file is not None:
            files = {"file": await in_thread(wire.read_file, file)}
            form = {
                name: value if isinstance(value, str) else json.dumps(value)
                for name, value in fields.items()
            }
        else:
            content = fields | ({} if items is None else {"items": list(items)})
        return Request(
            "POST",
            "/v1/batches",
            wire.query({"dry_run": dry_run or None}),
            json=content,
            data=form,
            files=files,
            headers={"Idempotency-Key": key} if key else {},
            repeatable=True if dry_run else None,
            waits=_INGEST_SECONDS,
        )


def _path(batch: "str | Identified") -> str:
    return f"/v1/batches/{wire.segment(batch)}"


def _parse(line: str) -> Any:
    try:
        return json.loads(line)
    except ValueError as error:
        raise UnexpectedAnswer("A line of a stream is no JSON.") from error
