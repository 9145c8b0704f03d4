"""Where words go: results to stdout, everything else to stderr, for people or for programs.

A terminal gets tables. A pipe gets one line per entry, its values separated by tabs, without a
heading and never cut. `--json` gets the API's own objects, and nothing else.
"""

import json
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from darkroom.cli.plain import plain

if TYPE_CHECKING:
    from rich.console import Console

Row = TypeVar("Row")

_LEAST_WRAPPED = 24
"""Characters below which a wrapped column is a strip that nobody can read."""
_BETWEEN_COLUMNS = 3
_BREAKS = re.compile(r"[\t\r\n\v\f]+")


@dataclass(frozen=True)
class Column(Generic[Row]):
    """One column of a list of `Row`s.

    `value` is what a pipe gets. `shown`, where it differs, is what a terminal gets; it may have
    rich's markup, `value` is taken as it is.
    """

    title: str
    value: Callable[[Row], object]
    shown: Callable[[Row], str] | None = None
    right: bool = False
    wrap: bool = False


class Output:
    """Stdout and stderr of one command."""

    def __init__(self, *, as_json: bool) -> None:
        self.as_json = as_json

    @cached_property
    def out(self) -> "Console":
        """Stdout; made on first use, since rich takes a while to import."""
        from rich.console import Console

        return Console(highlight=False, soft_wrap=True)

    @cached_property
    def err(self) -> "Console":
        """Stderr."""
        from rich.console import Console

        return Console(stderr=True, highlight=False, soft_wrap=True)

    @property
    def is_live(self) -> bool:
        """Whether bars and tables that redraw themselves make sense on stderr."""
        return self.err.is_terminal and not self.err.is_dumb_terminal

    def document(self, value: Any) -> None:
        """One JSON document on stdout."""
        _write(json.dumps(plain(value), ensure_ascii=False, indent=2))

    def line(self, value: Any) -> None:
        """One JSON document on one line of stdout, for streams."""
        _write(json.dumps(plain(value), ensure_ascii=False, separators=(",", ":")))

    def text(self, words: str) -> None:
        """A line of a result on stdout, without markup."""
        _write(words)

    def note(self, markup: str) -> None:
        """A line about what happens, on stderr, with rich's markup."""
        self.err.print(markup)

    def warning(self, message: str, code: str | None = None) -> None:
        """What the server wants known, on stderr; its words, which may quote a user's, have no
        markup."""
        from rich.markup import escape

        about = f" [dim]({code})[/]" if code else ""
        self.note(f"[yellow]Note:[/] {escape(message)}{about}")

    @contextmanager
    def busy(self, words: str) -> Iterator[None]:
        """A sign of life on stderr while something takes its time."""
        if not self.is_live:
            yield
            return
        with self.err.status(words):
            yield

    def rows(self, rows: Iterable[Row], columns: Sequence[Column[Row]], *, nothing: str) -> None:
        """A list on stdout; `nothing` is what to say on stderr where it is empty."""
        found = list(rows)
        if self.as_json:
            self.document(found)
        elif not found:
            self.err.print(nothing, style="dim", markup=False)
        elif self.out.is_terminal:
            self._table(found, columns)
        else:
            for row in found:
                _write("\t".join(flat(column.value(row)) for column in columns))

    def facts(self, pairs: Sequence[tuple[str, object]], document: Any) -> None:
        """The facts about one thing on stdout: name and value, line by line."""
        if self.as_json:
            self.document(document)
            return
        told = [(name, value) for name, value in pairs if value is not None]
        if not self.out.is_terminal:
            for name, value in told:
                _write(f"{name}\t{flat(value)}")
            return
        from rich.table import Table
        from rich.text import Text

        table = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
        table.add_column(style="bold")
        table.add_column(overflow="fold")
        for name, value in told:
            table.add_row(name, Text(flat(value)))
        self.out.print(table, soft_wrap=False)

    def _table(self, rows: Sequence[Row], columns: Sequence[Column[Row]]) -> None:
        from rich.box import SIMPLE_HEAD
        from rich.table import Table

        if _needed(rows, columns) > self.out.width:
            self._records(rows, columns)
            return
        table = Table(box=SIMPLE_HEAD, header_style="bold", pad_edge=False, padding=(0, 1))
        for column in columns:
            table.add_column(
                column.title,
                justify="right" if column.right else "left",
                no_wrap=not column.wrap,
                overflow="fold" if column.wrap else "ellipsis",
                ratio=1 if column.wrap else None,
            )
        for row in rows:
            table.add_row(*(_cell(column, row) for column in columns))
        self.out.print(table, soft_wrap=False)

    def _records(self, rows: Sequence[Row], columns: Sequence[Column[Row]]) -> None:
        """For a terminal too narrow for a table: the first column, and the others beneath it."""
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
    """What a terminal gets, with rich's markup."""
    from rich.markup import escape

    return column.shown(row) if column.shown else escape(flat(column.value(row)))


def _fact(column: Column[Row], row: Row) -> str:
    return f"[dim]{column.title}[/] {_cell(column, row)}" if column.title else _cell(column, row)


def _needed(rows: Sequence[Row], columns: Sequence[Column[Row]]) -> int:
    """Characters that a table of these rows needs to be read."""
    from rich.text import Text

    needed = 0
    for column in columns:
        cells = [column.title, *(_cell(column, row) for row in rows)]
        longest = max(Text.from_markup(cell).cell_len for cell in cells)
        needed += (min(longest, _LEAST_WRAPPED) if column.wrap else longest) + _BETWEEN_COLUMNS
    return needed


def flat(value: object) -> str:
    """A value on one line, without tabs; nothing for None."""
    if value is None:
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, datetime):
        return str(plain(value))
    return _BREAKS.sub(" ", str(value))


def _write(words: str) -> None:
    sys.stdout.write(f"{words}\n")
    sys.stdout.flush()
