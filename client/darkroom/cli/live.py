"""A job as it develops, drawn on stderr: a bar, its words, and the latest preview above it."""

from types import TracebackType
from typing import TYPE_CHECKING, Self

from darkroom.cli.output import Output
from darkroom.cli.pictures import Preview, can_move, choose, half_blocks

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.live import Live
    from rich.progress import Progress, TaskID


def wants_previews(output: Output, preview: Preview) -> bool:
    """Whether previews of the work would be seen."""
    return output.is_live and can_move(choose(preview, output.err), output.err)


class JobView:
    """Redraws itself on a terminal; elsewhere it says what changed, a line at a time."""

    def __init__(self, output: Output, label: str, images: int, preview: Preview) -> None:
        self._output = output
        self._label = label
        self._images = images
        self._fractions: dict[int, float] = {}
        self._preview: RenderableType | None = None
        self.wants_previews = wants_previews(output, preview)
        self._said: str | None = None
        self._live: Live | None = None
        self._bar: Progress | None = None
        self._task: TaskID | None = None

    def words(self, words: str) -> None:
        """What is going on, e.g. `queued, 3 before it`."""
        if self._bar is not None and self._task is not None:
            self._bar.update(self._task, words=words)
        elif words != self._said:
            self._output.note(f"{self._label}: {words}")
        self._said = words

    def step(self, image: int, fraction: float, words: str, whole: float | None = None) -> None:
        """One image is `fraction` (0 to 1) done, and the job `whole`, where that is known."""
        self._fractions[image] = fraction
        if self._bar is not None and self._task is not None:
            done = sum(self._fractions.values()) / self._images
            self._bar.update(self._task, completed=max(done, whole or 0.0), words=words)

    def picture(self, data: bytes) -> None:
        """The latest preview."""
        drawn = half_blocks(data) if self.wants_previews else None
        if drawn is not None and self._live is not None:
            self._preview = drawn
            self._live.update(self._drawn())

    def _drawn(self) -> "RenderableType":
        from rich.console import Group

        assert self._bar is not None  # noqa: S101
        return self._bar if self._preview is None else Group(self._preview, self._bar)

    def __enter__(self) -> Self:
        if not self._output.is_live:
            return self
        from rich.live import Live
        from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn

        self._bar = Progress(
            TextColumn("[bold]{task.description}"),
            BarColumn(bar_width=28),
            TaskProgressColumn(),
            TextColumn("[dim]{task.fields[words]}"),
            console=self._output.err,
        )
        self._task = self._bar.add_task(self._label, total=1.0, words="")
        self._live = Live(self._bar, console=self._output.err, refresh_per_second=8, transient=True)
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
