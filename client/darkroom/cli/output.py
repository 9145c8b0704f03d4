"""Output: results go to stdout, everything else to stderr, for people or for programs.

A terminal gets tables. A pipe gets one line per entry, its values separated by tabs, without a
header and never truncated. `--json` prints the API's own objects, and nothing else.
"""

import json
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields, is_dataclass
from datetime import UTC, datetime
from enum import Enum
from functools import cached_property
from pathlib import PurePath
from typing import TYPE_CHECKING, Any, Generic, TypeVar

import msgspec

if TYPE_CHECKING:
    from rich.console import Console, ConsoleOptions, RenderResult
    from rich.measure import Measurement

Row = TypeVar("Row")

_MIN_WRAPPED = 20
"""A wrapped column narrower than this many characters is unreadable."""
_BETWEEN_COLUMNS = 2
_CONTROLS = re.compile(r"[\x00-\x1f\x7f-\x9f]+")
"""Line breaks, and what would command a terminal: prompts and messages are other people's texts."""
_UNESCAPED = re.compile(r"[\x7f-\x9f]")
"""Those of them that JSON need not escape."""
_COLOURS = {
    **dict.fromkeys(("succeeded", "ready", "ok"), "green"),
    **dict.fromkeys(("running", "busy", "validating"), "cyan"),
    **dict.fromkeys(("queued", "pending"), "blue"),
    **dict.fromkeys(("partial", "warning", "paused", "expired", "canceled", "draining"), "yellow"),
    **dict.fromkeys(("failed", "faulty", "fault"), "red"),
    "unknown": "dim",
}


@dataclass(frozen=True)
class Column(Generic[Row]):
    """One column of a list of `Row`s.

    `value` is what a pipe gets, taken literally. A terminal gets `shown` where that differs; it may
    contain rich's markup. Where a table is too wide, columns with the highest `drop` are left out
    first; those with 0 never are.
    """

    title: str
    value: Callable[[Row], object]
    shown: Callable[[Row], str] | None = None
    right: bool = False
    wrap: bool = False
    lines: int | None = None
    """Of a wrapped column: show this many lines of a cell at most."""
    drop: int = 0


class Output:
    """Stdout and stderr of one command."""

    def __init__(self, *, as_json: bool) -> None:
        self.as_json = as_json

    @cached_property
    def out(self) -> "Console":
        """Stdout; created on first use, since rich takes a while to import."""
        from rich.console import Console

        return Console(highlight=False, soft_wrap=True)

    @cached_property
    def err(self) -> "Console":
        """Stderr."""
        from rich.console import Console

        return Console(stderr=True, highlight=False, soft_wrap=True)

    @property
    def is_live(self) -> bool:
        """Whether stderr can show bars and tables that redraw themselves."""
        return self.err.is_terminal and not self.err.is_dumb_terminal

    def document(self, value: Any) -> None:
        """Print one JSON document to stdout."""
        _write(json_text(plain(value), indent=2))

    def line(self, value: Any) -> None:
        """Print one JSON document as one line of stdout, for streams."""
        _write(json_text(plain(value), separators=(",", ":")))

    def text(self, text: str) -> None:
        """Print one line of a result to stdout, without markup."""
        _write(text)

    def note(self, markup: str) -> None:
        """Print a line to stderr about what is happening, in rich's markup."""
        self.err.print("\n".join(_CONTROLS.sub(" ", line) for line in markup.split("\n")))

    def warning(self, message: str, code: str | None = None) -> None:
        """Print a server's warning to stderr, without markup: it may quote a user's text."""
        from rich.markup import escape

        about = f" [dim]({code})[/]" if code else ""
        self.note(f"[yellow]Note:[/] {escape(message)}{about}")

    def outcome(self, document: Any, *notes: str, text: str | None = None) -> None:
        """Print what a command did: as JSON, or as one line of stdout and notes on stderr."""
        if self.as_json:
            self.document(document)
            return
        if text is not None:
            self.text(text)
        for note in notes:
            self.note(note)

    @contextmanager
    def busy(self, text: str) -> Iterator[None]:
        """Show a spinner on stderr during a slow operation."""
        if not self.is_live:
            yield
            return
        with self.err.status(text):
            yield

    def rows(self, rows: Iterable[Row], columns: Sequence[Column[Row]], *, empty: str) -> None:
        """Print a list to stdout; if it is empty, say `empty` on stderr."""
        result = list(rows)
        if self.as_json:
            self.document(result)
        elif not result:
            self.err.print(empty, style="dim", markup=False)
        elif self.out.is_terminal:
            self._table(result, columns)
        else:
            for row in result:
                _write("\t".join(flat(column.value(row)) for column in columns))

    def facts(self, pairs: Sequence[tuple[str, object]], document: Any) -> None:
        """Print the facts about one thing to stdout, a name and value per line, without None."""
        if self.as_json:
            self.document(document)
            return
        known = [(name, flat(value)) for name, value in pairs if value is not None]
        if not self.out.is_terminal:
            for name, value in known:
                _write(f"{name}\t{value}")
            return
        from rich.table import Table
        from rich.text import Text

        table = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
        table.add_column(style="bold")
        table.add_column(overflow="fold")
        for name, value in known:
            table.add_row(name, Text(value))
        self.out.print(table, soft_wrap=False)

    def _table(self, rows: Sequence[Row], columns: Sequence[Column[Row]]) -> None:
        from rich.box import SIMPLE_HEAD
        from rich.table import Table

        shown = _fitting(rows, columns, self.out.width)
        if shown is None:
            self._records(rows, columns)
            return
        table = Table(box=SIMPLE_HEAD, header_style="bold", show_edge=False, padding=(0, 1, 0, 0))
        for column in shown:
            table.add_column(
                column.title,
                justify="right" if column.right else "left",
                no_wrap=not column.wrap,
                overflow="fold" if column.wrap else "ellipsis",
                ratio=1 if column.wrap else None,
            )
        for row in rows:
            cells = ((column, _cell(column, row)) for column in shown)
            table.add_row(
                *(Clamped(cell, each.lines) if each.lines else cell for each, cell in cells)
            )
        self.out.print(table, soft_wrap=False)

    def _records(self, rows: Sequence[Row], columns: Sequence[Column[Row]]) -> None:
        """Where a table does not fit: the first column, and the others beneath it."""
        from rich.padding import Padding

        first, *others = columns
        for row in rows:
            head = _fact(first, row) if first.right else _cell(first, row)
            self.out.print(f"[bold]{head}[/]")
            short = [column for column in others if not column.wrap]
            facts = [_fact(column, row) for column in short if flat(column.value(row))]
            lines = [" · ".join(facts)] if facts else []
            lines += [_fact(column, row) for column in others if column.wrap]
            for line in lines:
                self.out.print(Padding(line, (0, 0, 0, 2)), soft_wrap=False)


def _cell(column: Column[Row], row: Row) -> str:
    """What a terminal gets, in rich's markup."""
    from rich.markup import escape

    return column.shown(row) if column.shown else escape(flat(column.value(row)))


def _fact(column: Column[Row], row: Row) -> str:
    return f"[dim]{column.title}[/] {_cell(column, row)}" if column.title else _cell(column, row)


class Clamped:
    """Markup that is cut to `lines` lines."""

    def __init__(self, markup: str, lines: int) -> None:
        from rich.text import Text

        self._text: Text = Text.from_markup(markup)
        self._lines = lines

    def __rich_console__(self, console: "Console", options: "ConsoleOptions") -> "RenderResult":
        wrapped = self._text.wrap(console, options.max_width, overflow="fold")
        *whole, last = wrapped[: self._lines] or [self._text]
        if len(wrapped) > self._lines:
            last.rstrip()
            last.truncate(options.max_width - 1, overflow="crop")
            last.append("…")
        yield from (*whole, last)

    def __rich_measure__(self, console: "Console", options: "ConsoleOptions") -> "Measurement":
        from rich.measure import Measurement

        return Measurement.get(console, options, self._text)


def _fitting(
    rows: Sequence[Row], columns: Sequence[Column[Row]], width: int
) -> Sequence[Column[Row]] | None:
    """The columns that fit side by side; None if those that must stay do not."""
    shown = list(columns)
    while _width_needed(rows, shown) > width:
        least = max(shown, key=lambda column: column.drop)
        if not least.drop:
            return None
        shown.remove(least)
    return shown


def _width_needed(rows: Sequence[Row], columns: Sequence[Column[Row]]) -> int:
    """How many characters wide a readable table of these rows is."""
    from rich.text import Text

    needed = 0
    for column in columns:
        cells = [column.title, *(_cell(column, row) for row in rows)]
        longest = max(Text.from_markup(cell).cell_len for cell in cells)
        needed += (min(longest, _MIN_WRAPPED) if column.wrap else longest) + _BETWEEN_COLUMNS
    return needed - _BETWEEN_COLUMNS


def _write(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


def plain(value: Any) -> Any:
    """Turn what the client returns into what JSON can hold: the API's own objects, as received."""
    if hasattr(value, "raw") and isinstance(value.raw, Mapping):
        return dict(value.raw)
    if isinstance(value, msgspec.Struct):
        value = msgspec.structs.asdict(value)
    elif is_dataclass(value) and not isinstance(value, type):
        value = {each.name: getattr(value, each.name) for each in fields(value)}
    if isinstance(value, Mapping):
        return {str(name): plain(part) for name, part in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(part) for part in value]
    if isinstance(value, datetime):
        return value.isoformat().replace("+00:00", "Z")
    if isinstance(value, Enum):
        return value.value
    return str(value) if isinstance(value, PurePath) else value


def flat(value: object) -> str:
    """Format a value on one line, without tabs and control characters; empty for None."""
    if value is None:
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    return _CONTROLS.sub(" ", str(plain(value) if isinstance(value, datetime) else value))


def json_text(value: Any, **options: Any) -> str:
    """JSON that commands no terminal."""
    text = json.dumps(value, ensure_ascii=False, **options)
    return _UNESCAPED.sub(lambda found: f"\\u{ord(found[0]):04x}", text)


def short(text: object, length: int = 60) -> str:
    """Truncate a text to one line of at most `length` characters."""
    line = flat(text)
    return line if len(line) <= length else f"{line[: length - 1].rstrip()}…"


def state_markup(state: str) -> str:
    """Format a state in its colour."""
    colour = _COLOURS.get(state)
    return f"[{colour}]{state}[/]" if colour else state


def plural(count: int, noun: str) -> str:
    """`1 image`, `2 images`."""
    return f"{count:,} {noun}" if count == 1 else f"{count:,} {noun}s"


def duration(seconds: float) -> str:
    """Format a duration: `40.0 ms`, `3.21 s`, `10 minutes`, `1 hour and 30 minutes`."""
    import humanize

    if seconds < 60:
        return humanize.metric(seconds, "s")
    unit = "minutes" if seconds < 86_400 else "hours"
    return humanize.precisedelta(seconds, minimum_unit=unit, format="%.0f")


def age(moment: datetime | None) -> str:
    """Format how long ago a time was, for a table: `40s`, `12m`, `3h`, `5d`; empty for None."""
    if moment is None:
        return ""
    seconds = max(0, round((datetime.now(UTC) - moment).total_seconds()))
    for size, unit in ((86_400, "d"), (3_600, "h"), (60, "m")):
        if seconds >= size:
            return f"{seconds // size}{unit}"
    return f"{seconds}s"


def ago(moment: datetime | None) -> str:
    """Format a time relative to now: `5 minutes ago`, `in 10 minutes`; empty for None."""
    import humanize

    if moment is None:
        return ""
    seconds = (moment - datetime.now(UTC)).total_seconds()
    return f"in {duration(seconds)}" if seconds > 1 else humanize.naturaltime(moment)
