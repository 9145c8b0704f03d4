"""Tables of measurements in a page of docs/, between marks; the text around them is a person's."""

import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path


def markdown(head: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """The lines of a table."""
    return [_line(head), "|" + "---|" * len(head), *map(_line, rows)]


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def put_into(page: Path, found: Mapping[str, str]) -> None:
    """Replace what stands between `<!-- begin NAME -->` and `<!-- end NAME -->`.

    Raises:
        ValueError: the page has no such place.
    """
    text = page.read_text("utf-8")
    for name, table in found.items():
        place = re.compile(rf"(<!-- begin {name} -->\n).*?(<!-- end {name} -->)", re.DOTALL)
        text, count = place.subn(lambda old, new=table: f"{old[1]}{new}{old[2]}", text)
        if count != 1:
            raise ValueError(f"{page} has no one place for the table {name}")
    page.write_text(text, "utf-8")
