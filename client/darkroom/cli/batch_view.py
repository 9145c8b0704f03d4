"""A batch as it runs, drawn on stderr: a bar, its counts, and what came last."""

import threading
from collections import deque
from types import TracebackType
from typing import TYPE_CHECKING, Self

from darkroom.cli.output import Output
from darkroom.cli.words import ago, plural, short, state_markup

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.live import Live

    from darkroom.types.batches import Batch, BatchResult

_LATEST = 5
_EVERY = 0.1
"""Off a terminal: a line for each tenth of the work."""


class BatchView:
    """Redraws itself on a terminal; elsewhere a line now and then. Safe for several threads."""

    def __init__(self, output: Output, batch: "Batch") -> None:
        self._output = output
        self._batch = batch
        self._saved = 0
        self._latest: deque[BatchResult] = deque(maxlen=_LATEST)
        self._live: Live | None = None
        self._lock = threading.Lock()
        self._said: tuple[str, int] | None = None

    def update(self, batch: "Batch") -> None:
        """How it stands."""
        with self._lock:
            self._batch = batch
            self._draw()

    def saved(self, pictures: int) -> None:
        """So many pictures were there before."""
        with self._lock:
            self._saved = pictures

    def came(self, result: "BatchResult", saved: int) -> None:
        """One job has ended; `saved` pictures are in the folder by now."""
        with self._lock:
            self._latest.append(result)
            self._saved = saved
            self._draw()

    def _draw(self) -> None:
        if self._live is not None:
            self._live.update(self._drawn())
            return
        batch = self._batch
        state = "paused" if batch.paused and not batch.is_final else batch.state
        said = (state, int(batch.fraction / _EVERY))
        if said != self._said:
            self._said = said
            counts = batch.counts
            self._output.note(
                f"{batch.id}: {state}, {counts.total - counts.queued - counts.running:,} of "
                f"{counts.total:,} jobs ended, {self._saved:,} pictures saved"
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
                Text(what, style="dim"),
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

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._live is not None:
            self._live.stop()


def _head(batch: "Batch") -> "RenderableType":
    from rich.progress_bar import ProgressBar
    from rich.table import Table

    state = "paused" if batch.paused and not batch.is_final else batch.state
    line = Table.grid(padding=(0, 2, 0, 0))
    line.add_column(no_wrap=True, min_width=len(batch.id))
    line.add_row(
        f"[bold]{batch.id}[/]",
        state_markup(state),
        ProgressBar(total=1.0, completed=batch.fraction, width=24),
        f"{batch.fraction:.0%}",
    )
    return line


def _pace(batch: "Batch") -> str:
    if batch.is_final:
        return ""
    if batch.paused:
        return f"[yellow]It is paused; to go on: darkroom batch resume {batch.id}[/]"
    told = []
    if batch.rate is not None:
        told.append(f"{batch.rate.jobs_per_second:.1f} jobs/s")
    if batch.eta is not None:
        told.append(f"done {ago(batch.eta)}")
    return f"[dim]{' · '.join(told)}[/]" if told else ""


def _counts(batch: "Batch", saved: int) -> str:
    counts = batch.counts
    told = [
        (counts.queued, "queued", "blue"),
        (counts.running, "running", "cyan"),
        (counts.succeeded, "succeeded", "green"),
        (counts.failed, "failed", "red"),
        (counts.expired, "expired", "yellow"),
        (counts.canceled, "canceled", "yellow"),
    ]
    parts = [f"[{colour}]{count:,} {name}[/]" for count, name, colour in told if count]
    parts.append(f"[bold]{plural(saved, 'picture')} saved[/]")
    return "[dim] · [/]".join(parts)
