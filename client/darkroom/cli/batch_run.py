"""Run a batch into a folder so that running it again resumes it, with a live view on stderr."""

import threading
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from darkroom.cli.batch_folder import BatchFolder, FolderState, fingerprint
from darkroom.cli.command import Cli
from darkroom.cli.failures import CliError, ExitCode
from darkroom.cli.output import Output, ago, flat, plural, short, state_markup
from darkroom.errors import APIStatusError, DarkroomError

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.live import Live

    from darkroom import Batch, BatchResult, Client

_DOWNLOADS = 6
"""Concurrent downloads."""
_MAX_WAITING = 200
"""Results read ahead of their downloads; more would only fill memory."""
_POLL_SECONDS = 1.0
_LATEST = 5
"""Ended jobs that the live view lists."""
_LOG_FRACTION = 0.1
"""Off a terminal: one line for each tenth of the work."""


def state_of(batch: "Batch") -> str:
    """The batch's state, or `paused`."""
    return "paused" if batch.paused and not batch.is_final else batch.state


class BatchView:
    """Redraws itself on a terminal; elsewhere it prints a line now and then. Thread-safe."""

    def __init__(self, output: Output, batch: "Batch") -> None:
        self._output = output
        self._batch = batch
        self._saved = 0
        self._latest: deque[BatchResult] = deque(maxlen=_LATEST)
        self._live: Live | None = None
        self._lock = threading.Lock()
        self._logged: tuple[str, int] | None = None

    def update(self, batch: "Batch") -> None:
        """Show new progress."""
        with self._lock:
            self._batch = batch
            self._draw()

    def saved(self, images: int) -> None:
        """Set how many images the folder had before."""
        with self._lock:
            self._saved = images

    def ended(self, result: "BatchResult", saved: int) -> None:
        """One job has ended; the folder now has `saved` images."""
        with self._lock:
            self._latest.append(result)
            self._saved = saved
            self._draw()

    def _draw(self) -> None:
        if self._live is not None:
            self._live.update(self._drawn())
            return
        batch = self._batch
        state = state_of(batch)
        progress = (state, int(batch.fraction / _LOG_FRACTION))
        if progress != self._logged:
            self._logged = progress
            counts = batch.counts
            self._output.note(
                f"{batch.id}: {state}, {counts.total - counts.queued - counts.running:,} of "
                f"{counts.total:,} jobs ended, {self._saved:,} images saved"
            )

    def _drawn(self) -> "RenderableType":
        from rich.console import Group
        from rich.table import Table
        from rich.text import Text

        batch = self._batch
        table = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
        table.add_column(no_wrap=True)
        table.add_column(no_wrap=True)
        table.add_column(overflow="ellipsis", no_wrap=True)
        for result in self._latest:
            what = f"seed {', '.join(str(seed) for seed in result.seeds)}"
            if result.error is not None:
                what = f"{result.error.code}: {result.error.message or ''}"
            table.add_row(
                Text(short(result.custom_id, 30)),
                state_markup(result.state),
                Text(flat(what), style="dim"),
            )
        return Group(_head(batch), _counts(batch, self._saved), _pace(batch), table)

    def __enter__(self) -> Self:
        if self._output.is_live:
            from rich.live import Live

            self._live = Live(
                self._drawn(), console=self._output.err, refresh_per_second=4, transient=True
            )
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._live is not None:
            self._live.stop()


def _head(batch: "Batch") -> "RenderableType":
    from rich.progress_bar import ProgressBar
    from rich.table import Table

    line = Table.grid(padding=(0, 2, 0, 0))
    line.add_column(no_wrap=True, min_width=len(batch.id))
    line.add_row(
        f"[bold]{batch.id}[/]",
        state_markup(state_of(batch)),
        ProgressBar(total=1.0, completed=batch.fraction, width=24),
        f"{batch.fraction:.0%}",
    )
    return line


def _pace(batch: "Batch") -> str:
    if batch.is_final:
        return ""
    if batch.paused:
        return f"[yellow]Paused. To resume: darkroom batch resume {batch.id}[/]"
    parts = []
    if batch.rate is not None:
        parts.append(f"{batch.rate.jobs_per_second:.1f} jobs/s")
    if batch.eta is not None:
        parts.append(f"done {ago(batch.eta)}")
    return f"[dim]{' · '.join(parts)}[/]" if parts else ""


def _counts(batch: "Batch", saved: int) -> str:
    counts = batch.counts
    counted = [
        (counts.queued, "queued", "blue"),
        (counts.running, "running", "cyan"),
        (counts.succeeded, "succeeded", "green"),
        (counts.failed, "failed", "red"),
        (counts.expired, "expired", "yellow"),
        (counts.canceled, "canceled", "yellow"),
    ]
    parts = [f"[{colour}]{count:,} {name}[/]" for count, name, colour in counted if count]
    parts.append(f"[bold]{plural(saved, 'image')} saved[/]")
    return "[dim] · [/]".join(parts)


@dataclass(frozen=True)
class DownloadResult:
    """The result of a run."""

    batch: "Batch"
    folder: BatchFolder
    new: int
    """Images that this run downloaded."""


def submit_once(cli: Cli, source: Path, folder: Path, options: dict[str, Any]) -> FolderState:
    """Return the folder's batch; submit it if no earlier run did.

    Raises:
        CliError: the folder belongs to another file, other options, or another server.
        BatchRejected: the server refused it; the folder is left as if this had never run.
    """
    mark = fingerprint(source, options)
    folder.mkdir(parents=True, exist_ok=True)
    state = FolderState.read(folder)
    if state is None:
        state = FolderState.new(folder, source, mark, cli.client.url)
    _check(state, source, mark, cli.client.url)
    if state.batch_id is not None:
        cli.output.note(f"Resuming [bold]{state.batch_id}[/].")
        return state
    cli.if_interrupted("Run the same command again: it resumes, and submits nothing twice.")
    try:
        with cli.output.busy(f"submitting {source.name}"):
            batch = cli.client.batches.submit(
                file=source, idempotency_key=state.idempotency_key, **options
            )
    except APIStatusError as error:
        if error.status < 500:
            state.remove()
        raise
    return state.with_batch(batch.id)


def _check(state: FolderState, source: Path, mark: str, server: str) -> None:
    if state.fingerprint != mark:
        raise CliError(
            f"{state.folder} holds another batch: {state.source} with other content or other "
            f"options{f' ({state.batch_id})' if state.batch_id else ''}.",
            ExitCode.USAGE,
            f"To resume, run it as before. For {source.name} as it is now, choose another --out.",
        )
    if state.server != server:
        raise CliError(
            f"{state.folder} holds a batch of {state.server}, not of {server}.",
            ExitCode.USAGE,
            "Pass that server's --url, or choose another --out.",
        )


def download(cli: Cli, batch_id: str, path: Path) -> DownloadResult:
    """Download every image of the batch into the folder as it is made, until the batch ends."""
    path.mkdir(parents=True, exist_ok=True)
    folder = BatchFolder(path)
    batch = cli.client.batches.get(batch_id)
    with BatchView(cli.output, batch) as view, _Poller(cli.client, batch_id, view):
        view.saved(folder.images)
        new = _download_all(cli.client, batch_id, folder, view)
        view.update(cli.client.batches.get(batch_id))
    folder.finish()
    return DownloadResult(cli.client.batches.get(batch_id), folder, new)


def _download_all(client: "Client", batch_id: str, folder: BatchFolder, view: BatchView) -> int:
    """Download what the folder lacks; return how many images that were."""
    new = 0
    waiting: deque[Future[tuple[BatchResult, int]]] = deque()

    def take() -> None:
        nonlocal new
        result, fetched = waiting.popleft().result()
        new += fetched
        view.ended(result, folder.images)

    pool = ThreadPoolExecutor(_DOWNLOADS, thread_name_prefix="download")
    try:
        for result in client.batches.results(batch_id):
            if not folder.has(result):
                waiting.append(pool.submit(_download_job, client, folder, result))
            while waiting and (waiting[0].done() or len(waiting) > _MAX_WAITING):
                take()
        while waiting:
            take()
    finally:
        # After Ctrl-C the downloads that have started finish, so that no image is incomplete.
        pool.shutdown(cancel_futures=True)
    return new


def _download_job(
    client: "Client", folder: BatchFolder, result: "BatchResult"
) -> "tuple[BatchResult, int]":
    paths = folder.names(result)
    fetched = 0
    for image in result.images:
        if not folder.holds(paths[image.id], image):
            client.images.save(image, paths[image.id])
            fetched += 1
    folder.record(result, paths)
    return result, fetched


class _Poller:
    """Refreshes the view's counts while results are read."""

    def __init__(self, client: "Client", batch_id: str, view: BatchView) -> None:
        self._client = client
        self._batch_id = batch_id
        self._view = view
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def _run(self) -> None:
        while not self._stop.wait(_POLL_SECONDS):
            try:
                self._view.update(self._client.batches.get(self._batch_id))
            except (DarkroomError, RuntimeError):  # RuntimeError: the client has been closed
                continue  # the reader of the results notices, and reports it

    def __enter__(self) -> None:
        self._thread.start()

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join(timeout=_POLL_SECONDS)
