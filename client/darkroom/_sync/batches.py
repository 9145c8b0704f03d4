# Generated from darkroom/_async by client/make_sync.py (`make client`). Do not edit.
"""Batches: thousands of prompts at once, and what comes of them."""

import json
import time
from collections.abc import Generator, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Unpack

from darkroom import wire
from darkroom._sync.concurrency import in_thread, sleep
from darkroom._sync.pages import Pages
from darkroom._sync.transport import Request, Transport
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


class BatchFiles:
    """`client.batches.files`: files sent ahead, from which batches are made; kept for a week."""

    def __init__(self, transport: Transport) -> None:
        self._transport = transport

    def create(self, file: FileSource) -> BatchFile:
        """Send JSONL or CSV, gzipped or not, 100 MB at most."""
        sent = in_thread(wire.read_file, file)
        asked = Request(
            "POST",
            "/v1/batches/files",
            files={"file": sent},
            repeatable=True,
            waits=_INGEST_SECONDS,
        )
        return decode(BatchFile, self._transport.json(asked))

    def get(self, file: "str | Identified") -> BatchFile:
        """What is known of it."""
        return decode(BatchFile, self._transport.json(Request("GET", self._path(file))))

    def delete(self, file: "str | Identified") -> None:
        """Delete it; batches that were made of it stay."""
        self._transport.send(Request("DELETE", self._path(file)))

    def _path(self, file: "str | Identified") -> str:
        return f"/v1/batches/files/{wire.segment(file)}"


class Batches:
    """`client.batches`. Wherever a batch is asked for, its id does as well."""

    def __init__(self, transport: Transport) -> None:
        self._transport = transport
        self.files = BatchFiles(transport)

    def submit(
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
        asked = self._submission(items, file, upload_id, format, options, dry_run=False, key=key)
        return decode(Batch, self._transport.json(asked))

    def dry_run(
        self,
        items: Lines | None = None,
        *,
        file: FileSource | None = None,
        upload_id: str | None = None,
        format: Literal["jsonl", "csv"] | None = None,  # noqa: A002 - the name on the wire
        **options: Unpack[BatchOptions],
    ) -> BatchDryRun:
        """Check a batch and count what it would be; nothing is kept. Arguments as of `submit`."""
        asked = self._submission(items, file, upload_id, format, options, dry_run=True)
        return decode(BatchDryRun, self._transport.json(asked))

    def get(self, batch: "str | Identified") -> Batch:
        """State, exact counts, rate and ETA."""
        return decode(Batch, self._transport.json(Request("GET", _path(batch))))

    def list(
        self,
        *,
        state: str | Iterable[str] | None = None,
        page_size: int | None = None,
        after: str | None = None,
    ) -> Pages[Batch]:
        """Batches, newest first, of one state or several."""
        fields = {"state": wire.states(state), "limit": page_size}
        asked = Request("GET", "/v1/batches", wire.query(fields))
        return Pages(self._transport, asked, Batch, after)

    def wait(self, batch: "str | Identified", timeout: float | None = None) -> Batch:
        """The batch once it has ended, in whatever way.

        Raises:
            StillRunning: `timeout` seconds were over first. The batch goes on.
        """
        deadline = None if timeout is None else time.monotonic() + timeout
        while True:
            asked = Request("GET", _path(batch), patience=self._patience)
            found = decode(Batch, self._transport.json(asked))
            if found.is_final:
                return found
            left = _POLL_SECONDS if deadline is None else deadline - time.monotonic()
            if left <= 0:
                raise StillRunning(found)
            sleep(min(_POLL_SECONDS, left))

    def items(
        self,
        batch: "str | Identified",
        *,
        state: str | Iterable[str] | None = None,
        custom_id: str | None = None,
        page_size: int | None = None,
        after: str | None = None,
    ) -> Pages[BatchItem]:
        """Its jobs in the order of the file's lines, with their pictures so far."""
        fields = {"state": wire.states(state), "custom_id": custom_id, "limit": page_size}
        asked = Request("GET", f"{_path(batch)}/items", wire.query(fields))
        return Pages(self._transport, asked, BatchItem, after)

    def results(
        self, batch: "str | Identified", *, follow: bool = True
    ) -> Generator[BatchResult, None]:
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
                with self._transport.stream(asked) as response:
                    for line in response.iter_lines():
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
                sleep(_POLL_SECONDS)
                continue
            # A stream lasts ten minutes at most: only the batch itself says that it is over.
            if not follow or (self.get(batch)).is_final:
                return

    def errors(self, batch: "str | Identified") -> Generator[BatchError, None]:
        """What validation found, then jobs without success so far."""
        with self._transport.stream(Request("GET", f"{_path(batch)}/errors")) as response:
            for line in response.iter_lines():
                if line.strip():
                    yield decode(BatchError, _parse(line))

    def archive(self, batch: "str | Identified", path: str | Path) -> Path:
        """Write the pictures made so far as a ZIP of `custom_id_seed.png`. Returns where it is.

        Raises:
            NoAnswer: the connection broke; nothing is left at `path`. Ask again.
        """
        target = Path(path)
        partial = target.with_name(f".{target.name}.part")
        in_thread(target.parent.mkdir, parents=True, exist_ok=True)
        try:
            with (
                self._transport.stream(Request("GET", f"{_path(batch)}/archive")) as response,
                partial.open("wb") as file,
            ):
                for piece in response.iter_bytes():
                    file.write(piece)
            in_thread(partial.replace, target)
        finally:
            in_thread(partial.unlink, missing_ok=True)
        return target

    def contact_sheet(
        self, batch: "str | Identified", *, limit: int | None = None, columns: int | None = None
    ) -> bytes:
        """One WebP of thumbnails of the first pictures made so far.

        Raises:
            NotFound: there is no picture yet.
        """
        query = wire.query({"limit": limit, "columns": columns})
        asked = Request("GET", f"{_path(batch)}/contact-sheet", query)
        return (self._transport.send(asked)).content

    def pause(self, batch: "str | Identified") -> Batch:
        """Running jobs end, no other starts; deadlines go on counting."""
        return self._steer(batch, "pause")

    def resume(self, batch: "str | Identified") -> Batch:
        """Go on where it stood."""
        return self._steer(batch, "resume")

    def cancel(self, batch: "str | Identified") -> Batch:
        """Waiting jobs end at once, running ones within a step; pictures stay."""
        return self._steer(batch, "cancel")

    def update(self, batch: "str | Identified", *, priority: int) -> Batch:
        """Change its priority, 0 to 9: a higher one goes before the key's other batches."""
        asked = Request("PATCH", _path(batch), json={"priority": priority})
        return decode(Batch, self._transport.json(asked))

    def retry_failed(self, batch: "str | Identified") -> RetryResult:
        """Queue again what failed or expired, with the same seeds and no deadlines.

        Raises:
            NothingToRetry: nothing has.
        """
        asked = Request("POST", f"{_path(batch)}/retry-failed")
        return decode(RetryResult, self._transport.json(asked))

    def _steer(self, batch: "str | Identified", verb: str) -> Batch:
        asked = Request("POST", f"{_path(batch)}/{verb}", repeatable=True)
        return decode(Batch, self._transport.json(asked))

    @property
    def _patience(self) -> float:
        return self._transport.configuration.patience

    def _submission(
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
            files = {"file": in_thread(wire.read_file, file)}
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
