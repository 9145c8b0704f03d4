"""Run a batch into a folder, so that running it again goes on where it stopped."""

import threading
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from darkroom.cli.batch_folder import BatchFolder
from darkroom.cli.batch_state import BatchState, fingerprint
from darkroom.cli.batch_view import BatchView
from darkroom.cli.command import Cli
from darkroom.cli.exits import ExitCode
from darkroom.cli.failures import CliError

if TYPE_CHECKING:
    from darkroom import Batch, BatchResult, Client

_DOWNLOADS = 6
"""Pictures fetched at a time."""
_WAITING = 200
"""Results taken in before their pictures are there; more would only fill memory."""
_POLL_SECONDS = 1.0


@dataclass(frozen=True)
class Finished:
    """What a run came to."""

    batch: "Batch"
    folder: BatchFolder
    new: int
    """Pictures that this run has fetched."""


def submit_once(cli: Cli, source: Path, folder: Path, options: dict[str, Any]) -> BatchState:
    """The folder's batch: submitted now, or whenever this was run first.

    Raises:
        CliError: the folder belongs to another file, other options, or another server.
        BatchRejected: the server refused it; the folder is as if this had never been run.
    """
    from darkroom.errors import ApiError

    mark = fingerprint(source, options)
    folder.mkdir(parents=True, exist_ok=True)
    state = BatchState.read(folder)
    if state is None:
        state = BatchState.new(folder, source, mark, cli.client.url)
    _check(state, source, mark, cli.client.url)
    if state.batch_id is not None:
        cli.output.note(f"Going on with [bold]{state.batch_id}[/].")
        return state
    cli.if_interrupted("Run the same command again: it goes on, and submits nothing twice.")
    try:
        with cli.output.busy(f"submitting {source.name}"):
            batch = cli.client.batches.submit(
                file=source, idempotency_key=state.idempotency_key, **options
            )
    except ApiError as error:
        if error.status < 500:
            state.forget()
        raise
    return state.with_batch(batch.id)


def _check(state: BatchState, source: Path, mark: str, server: str) -> None:
    if state.fingerprint != mark:
        raise CliError(
            f"{state.folder} holds another batch: {state.source} with other content or other "
            f"options{f' ({state.batch_id})' if state.batch_id else ''}.",
            ExitCode.USAGE,
            f"To go on, run it as it was run before. For {source.name} as it is now, give "
            "another --out.",
        )
    if state.server != server:
        raise CliError(
            f"{state.folder} holds a batch of {state.server}, not of {server}.",
            ExitCode.USAGE,
            "Give the server's --url, or another --out.",
        )


def collect(cli: Cli, batch_id: str, path: Path) -> Finished:
    """Fetch every picture of the batch into the folder as it is made, until the batch has ended."""
    path.mkdir(parents=True, exist_ok=True)
    folder = BatchFolder(path)
    batch = cli.client.batches.get(batch_id)
    with BatchView(cli.output, batch) as view, _Poller(cli.client, batch_id, view):
        view.saved(folder.pictures)
        new = _fetch_all(cli.client, batch_id, folder, view)
        view.update(cli.client.batches.get(batch_id))
    folder.settle()
    return Finished(cli.client.batches.get(batch_id), folder, new)


def _fetch_all(client: "Client", batch_id: str, folder: BatchFolder, view: BatchView) -> int:
    """How many pictures were fetched; what was there was not."""
    new = 0
    waiting: deque[Future[tuple[BatchResult, int]]] = deque()

    def take() -> None:
        nonlocal new
        result, fetched = waiting.popleft().result()
        new += fetched
        view.came(result, folder.pictures)

    pool = ThreadPoolExecutor(_DOWNLOADS, thread_name_prefix="download")
    try:
        for result in client.batches.results(batch_id):
            if not folder.has(result):
                waiting.append(pool.submit(_fetch, client, folder, result))
            while waiting and (waiting[0].done() or len(waiting) > _WAITING):
                take()
        while waiting:
            take()
    finally:
        # After Ctrl-C what has begun is finished, so that no picture is half there.
        pool.shutdown(cancel_futures=True)
    return new


def _fetch(
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
    """Keeps the view's counts fresh while results are read."""

    def __init__(self, client: "Client", batch_id: str, view: BatchView) -> None:
        self._client = client
        self._batch_id = batch_id
        self._view = view
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def _run(self) -> None:
        from darkroom.errors import DarkroomError

        while not self._stop.wait(_POLL_SECONDS):
            try:
                self._view.update(self._client.batches.get(self._batch_id))
            except (DarkroomError, RuntimeError):  # RuntimeError: the client has been closed
                continue  # whoever reads the results notices, and says so

    def __enter__(self) -> None:
        self._thread.start()

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join(timeout=_POLL_SECONDS)
