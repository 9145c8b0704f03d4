"""`darkroom watch`: a live view of the queue, the workers, the jobs and the latest images."""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from itertools import islice
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer

from darkroom.cli.command import GENERATE, Cli, command
from darkroom.cli.failures import CliError, ExitCode, explain
from darkroom.cli.output import age, flat, plural, state_markup
from darkroom.cli.previews import PreviewMode, can_animate, choose, half_blocks
from darkroom.errors import (
    APIConnectionError,
    DarkroomError,
    InternalServerError,
    NotFoundError,
    PermissionDeniedError,
    RateLimitError,
)

if TYPE_CHECKING:
    from rich.console import Console, RenderableType
    from rich.table import Table
    from rich.text import Text

    from darkroom import Client, Image, Job, QueueDepth, Worker

T = TypeVar("T")

app = typer.Typer()

_TIMEOUT = 10.0
"""Seconds to wait for each answer."""
_MAX_PAUSE = 60.0
"""Seconds after which it looks again, whatever the server asks for."""
_JOBS = 40
"""Latest jobs that are looked at."""
_MAX_SHOWN = 6
"""Rows of each part, at most."""
_FEW_SHOWN = 3
"""Jobs in a window that is lower than `_LOW`, to leave room for images."""
_LOW = 30
_BAR = 20
_THUMBNAIL = (18, 9)
"""Columns and rows of each of the latest images."""
_MIN_THUMBNAIL_ROWS = 4


@dataclass(frozen=True)
class Snapshot:
    """What there was at one time. Queues and workers are None without the operator's scope."""

    jobs: "list[Job]"
    queues: "list[QueueDepth] | None"
    workers: "list[Worker] | None"

    def unfinished(self) -> "list[Job]":
        """Running jobs, the furthest first, then queued ones, the oldest first."""
        open_jobs = [job for job in self.jobs if not job.is_final]
        return sorted(open_jobs, key=lambda job: (job.state != "running", job.created_at))

    def images(self) -> "Iterator[tuple[Job, Image]]":
        """The latest images, newest first."""
        return ((job, image) for job in self.jobs for image in reversed(job.images))


@command(app, "watch", panel=GENERATE, examples=["darkroom watch", "darkroom watch --once"])
def watch(
    cli: Cli,
    *,
    once: Annotated[
        bool, typer.Option("--once", help="Show it once and end, as in a pipe.")
    ] = False,
    interval: Annotated[
        float, typer.Option(metavar="SECONDS", min=0.2, help="How often to look.")
    ] = 2.0,
    preview: Annotated[
        PreviewMode, typer.Option("--preview", help="off: no images.")
    ] = PreviewMode.AUTO,
) -> None:
    """Watch the queue, the workers, your jobs and their latest images, until Ctrl-C.

    The whole queue and all workers need a key with the scope operator; other keys see their own
    jobs.
    """
    from darkroom import Client

    with Client(cli.url, cli.api_key, timeout=_TIMEOUT, retries=0) as client:
        source = _Source(client)
        if cli.output.as_json:
            cli.output.document(vars(source.look()))
        elif once or not cli.output.out.is_terminal:
            _print(cli, source, preview)
        else:
            _follow(cli, source, interval, preview)


class _Source:
    """Looks at the server; asks for each thumbnail once, and for nothing that was forbidden."""

    def __init__(self, client: "Client") -> None:
        self.client = client
        self._is_operator = True
        self._thumbnails: dict[str, bytes | None] = {}

    def look(self) -> Snapshot:
        """What there is now."""
        jobs = self.client.jobs.list(page_size=_JOBS).take(_JOBS)
        queues = self._as_operator(lambda: self.client.queues.list().all())
        workers = self._as_operator(lambda: self.client.workers.list().all())
        return Snapshot(jobs, queues, workers)

    def _as_operator(self, ask: Callable[[], T]) -> T | None:
        if self._is_operator:
            try:
                return ask()
            except PermissionDeniedError:
                self._is_operator = False
        return None

    def thumbnail(self, image_id: str) -> bytes | None:
        """The image, small; None if it cannot be had now."""
        if image_id not in self._thumbnails:
            try:
                self._thumbnails[image_id] = self.client.images.thumbnail(image_id)
            except NotFoundError:
                self._thumbnails[image_id] = None
            except DarkroomError:
                return None
        return self._thumbnails[image_id]

    def keep(self, image_ids: set[str]) -> None:
        """Forget the other thumbnails."""
        self._thumbnails = {k: v for k, v in self._thumbnails.items() if k in image_ids}


def _print(cli: Cli, source: _Source, preview: PreviewMode) -> None:
    """One look: a page on a terminal, lines with tabs in a pipe."""
    now = source.look()
    if cli.output.out.is_terminal:
        view = _View(cli.output.out, source, preview)
        cli.output.out.print(view.drawn(now, height=None), soft_wrap=False)
        return
    lines: list[tuple[object, ...]] = [
        ("queue", each.model, each.queue_class, each.queued, each.running)
        for each in now.queues or ()
    ]
    lines += [("worker", each.name, each.state, each.jobs) for each in now.workers or ()]
    lines += [("job", job.id, job.state, f"{_done(job):.0%}", job.prompt) for job in now.jobs]
    for line in lines:
        cli.output.text("\t".join(map(flat, line)))


def _follow(cli: Cli, source: _Source, interval: float, preview: PreviewMode) -> None:
    from rich.live import Live

    console = cli.output.out
    if console.is_dumb_terminal:
        raise CliError("This terminal cannot redraw.", ExitCode.USAGE, "Use --once.")
    view = _View(console, source, preview)
    pause, latest = interval, source.look()  # a wrong address or key ends it here
    try:
        with Live(console=console, screen=True, auto_refresh=False) as live:
            while True:
                live.update(view.drawn(latest, console.height), refresh=True)
                time.sleep(pause)
                pause = interval
                try:
                    latest, view.trouble = source.look(), None
                except (APIConnectionError, InternalServerError, RateLimitError) as error:
                    failure = explain(error)
                    said = failure.message if failure else error
                    view.trouble = f"This is {age(view.seen_at)} old. {said}"
                    asked = getattr(error, "retry_after", None) or 0
                    pause = max(interval, min(asked, _MAX_PAUSE))
    except KeyboardInterrupt:
        return  # how it is meant to end


@dataclass
class _View:
    """Draws what there is, as wide as the console."""

    console: "Console"
    source: _Source
    preview: PreviewMode
    trouble: str | None = None
    """Why there is nothing newer."""
    seen_at: datetime = field(default_factory=lambda: datetime.now(UTC))

    def drawn(self, now: Snapshot, height: int | None) -> "RenderableType":
        """Everything; images only as far as there is room."""
        from rich.console import Group

        if self.trouble is None:
            self.seen_at = datetime.now(UTC)
        is_low = height is not None and height < _LOW
        parts: list[RenderableType] = [self._head(now)]
        for title, table in (
            ("Queue", _queue_table(now)),
            ("Workers", _worker_table(now)),
            ("Jobs", _job_table(now, _FEW_SHOWN if is_low else _MAX_SHOWN)),
        ):
            if table is not None:
                parts += ["", f"[bold]{title}[/]", table]
        used = sum(len(self.console.render_lines(part)) for part in parts)
        room = _THUMBNAIL[1] if height is None else min(_THUMBNAIL[1], height - used - 5)
        latest = self._latest(now, room)
        return Group(*parts, *(["", "[bold]Latest images[/]", latest] if latest else []))

    def _head(self, now: Snapshot) -> "RenderableType":
        from rich.markup import escape
        from rich.table import Table

        head = Table.grid(expand=True)
        head.add_column(ratio=1, no_wrap=True, overflow="ellipsis")
        head.add_column(justify="right")
        server = f"[dim]{escape(self.source.client.url)}[/]"
        head.add_row(f"[bold magenta]Darkroom[/]  {server}", f"[dim]{datetime.now():%H:%M:%S}[/]")
        if self.trouble:
            head.add_row(f"[red]{escape(self.trouble)}[/]", "")
        else:
            head.add_row(_summary(now), "")
        return head

    def _latest(self, now: Snapshot, rows: int) -> "RenderableType | None":
        from rich.table import Table

        columns = _THUMBNAIL[0]
        count = max(1, (self.console.width + 2) // (columns + 2))
        latest = list(islice(now.images(), count))
        self.source.keep({image.id for _, image in latest})
        if not latest or rows < _MIN_THUMBNAIL_ROWS:
            return None
        grid = Table.grid(padding=(0, 2, 0, 0))
        for _ in latest:
            grid.add_column(width=columns, no_wrap=True, overflow="ellipsis")
        if can_animate(choose(self.preview, self.console), self.console):
            grid.add_row(*(self._thumbnail(image.id, rows) for _, image in latest))
        grid.add_row(*(_plain(job.prompt) for job, _ in latest))
        grid.add_row(*(f"[dim]{age(job.finished_at or job.created_at)}[/]" for job, _ in latest))
        return grid

    def _thumbnail(self, image_id: str, rows: int) -> "RenderableType":
        data = self.source.thumbnail(image_id)
        return (data and half_blocks(data, _THUMBNAIL[0], rows)) or ""


def _summary(now: Snapshot) -> str:
    """What is happening, in a line."""
    if now.queues is not None:
        running = sum(each.running for each in now.queues)
        queued = sum(each.queued for each in now.queues)
    else:
        running = sum(job.state == "running" for job in now.jobs)
        queued = sum(job.state == "queued" for job in now.jobs)
    parts = [
        f"[cyan]{running:,} running[/]" if running else "[dim]nothing is running[/]",
        f"[blue]{queued:,} queued[/]" if queued else "[dim]nothing is queued[/]",
    ]
    if now.workers is not None:
        parts.append(plural(sum(each.state != "away" for each in now.workers), "worker"))
    return " · ".join(parts)


def _queue_table(now: Snapshot) -> "Table | None":
    """The models with work; a bar compares how much of it waits."""
    depths = [each for each in now.queues or () if each.queued or each.running]
    most = max((each.queued + each.running for each in depths), default=0)
    table = _grid({}, {}, {}, {"justify": "right"}, {})
    for each in sorted(depths, key=lambda each: -each.queued)[:_MAX_SHOWN]:
        running, queued = (round(_BAR * n / most) for n in (each.running, each.queued))
        oldest = each.oldest_age_seconds
        table.add_row(
            _plain(each.model),
            f"[dim]{each.queue_class}[/]",
            f"[cyan]{'━' * max(running, bool(each.running))}[/]"
            f"[blue]{'━' * max(queued, bool(each.queued))}[/]",
            f"{each.running:,} running, {each.queued:,} queued",
            f"[dim]the oldest for {round(oldest)} s[/]" if oldest else "",
        )
    return table if depths else None


def _worker_table(now: Snapshot) -> "Table | None":
    table = _grid({}, {}, {}, {}, {})
    for each in (now.workers or ())[:_MAX_SHOWN]:
        table.add_row(
            _plain(each.name),
            state_markup(each.state),
            _plain(each.device),
            plural(each.jobs, "job") if each.jobs else "[dim]idle[/]",
            _plain(", ".join(model.name for model in each.models if model.state == "warm")),
        )
    return table if now.workers else None


def _job_table(now: Snapshot, count: int) -> "Table | None":
    """Unfinished jobs, then the latest of the others."""
    jobs = [*now.unfinished(), *(job for job in now.jobs if job.is_final)][:count]
    table = _grid({}, {}, {"ratio": 1}, {"justify": "right"})
    table.expand = True
    for job in jobs:
        length = round(_BAR / 2 * _done(job))
        bar = f"[cyan]{'━' * length}[/][dim]{'─' * (_BAR // 2 - length)}[/] {_done(job):4.0%}"
        table.add_row(
            f"[dim]{job.id}[/]",
            bar if job.state == "running" else state_markup(job.state),
            _plain(job.prompt),
            f"[dim]{age(job.created_at)}[/]",
        )
    return table if jobs else None


def _done(job: "Job") -> float:
    if job.progress is not None and not job.is_final:
        return job.progress.fraction
    return float(job.state == "succeeded")


def _grid(*columns: dict[str, Any]) -> "Table":
    from rich.table import Table

    table = Table.grid(padding=(0, 2, 0, 0))
    for options in columns:
        table.add_column(no_wrap=True, overflow="ellipsis", **options)
    return table


def _plain(text: object) -> "Text":
    """What a user wrote is no markup."""
    from rich.text import Text

    return Text(flat(text), no_wrap=True, overflow="ellipsis")
