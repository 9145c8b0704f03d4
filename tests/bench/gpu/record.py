"""What was measured, written row by row: a line of JSON each, and Markdown made of them all."""

import json
import sys
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.pages import markdown

Numbers = Mapping[str, Any]
"""Column -> value."""

_PARTS = {
    "a": "Exactness in half precision (toy widths)",
    "b": "SD 2.1 base, 512², 25 steps",
    "c": "SD 2.1 base under load",
    "d": "SDXL, 1024², 20 Euler steps, guidance 8 (MLPerf's best: 2.04 images/s an H100)",
    "e": "Large transformers at true width, 4 steps",
    "f": "Inductor",
}


@dataclass(frozen=True)
class Item:
    """Something to measure."""

    key: str
    """`PART/…`: what `--from` takes."""
    seconds: float
    """What it takes on an H100, with what it must load first; about."""
    measure: Callable[[], Iterator[tuple[str, Numbers]]]
    """Gives (what, numbers) for each row of its table."""


class Record:
    """The rows, in `bench-gpu.jsonl` and `bench-gpu.md`."""

    def __init__(self, folder: Path, tiny: bool, kept: Collection[str]) -> None:
        """`kept`: the keys whose rows stay from an earlier run."""
        folder.mkdir(parents=True, exist_ok=True)
        self._lines, self._page = folder / "bench-gpu.jsonl", folder / "bench-gpu.md"
        self._on = _versions(tiny)
        self._rows = [row for row in _read(self._lines) if row["key"] in kept]
        self.current = ""
        """What is being measured."""
        self._began = 0.0
        self._lines.write_text("".join(map(_line, self._rows)), "utf-8")

    def begin(self, key: str) -> None:
        """The next rows are of this item."""
        self.current, self._began = key, time.monotonic()

    def add(self, key: str, what: str, numbers: Numbers) -> None:
        """Write one row, at once."""
        seconds = round(time.monotonic() - self._began, 1)
        row = {"key": key, "what": what, **numbers, "seconds": seconds, "on": self._on}
        self._rows.append(row)
        with self._lines.open("a", encoding="utf-8") as file:
            file.write(_line(row))
        self._page.write_text(self.markdown(), "utf-8")
        shown = ", ".join(f"{name} {_shown(value)}" for name, value in numbers.items())
        sys.stderr.write(f"{key}: {what}: {shown} [{seconds} s]\n")

    def markdown(self) -> str:
        """A table for each part, and what it ran on."""
        lines: list[str] = []
        for part, title in _PARTS.items():
            rows = [row for row in self._rows if row["key"].startswith(f"{part}/")]
            if rows:
                on = "; ".join(dict.fromkeys(row["on"] for row in rows))
                lines += [f"**({part}) {title}**, on {on}", "", *_table(rows), ""]
        return "\n".join(lines)


def _table(rows: list[dict[str, Any]]) -> list[str]:
    hidden = ("key", "on", "seconds")
    columns = list(dict.fromkeys(name for row in rows for name in row if name not in hidden))
    return markdown(columns, ([_shown(row.get(column, "")) for column in columns] for row in rows))


def _shown(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "**no**"
    if isinstance(value, float):
        return f"{value:.0f}" if abs(value) >= 100 else f"{value:.3g}"
    return str(value)


def _line(row: Mapping[str, Any]) -> str:
    return json.dumps(row) + "\n"


def _read(path: Path) -> list[dict[str, Any]]:
    """The rows of an earlier run; one that broke off may have left half a line."""
    rows = []
    for line in path.read_text("utf-8").splitlines() if path.exists() else ():
        try:
            rows.append(json.loads(line))
        except ValueError:
            continue
    return rows


def _versions(tiny: bool) -> str:
    import diffusers
    import torch
    import transformers

    device = "CPU" if tiny else torch.cuda.get_device_name()
    return (
        f"{device}, torch {torch.__version__}, diffusers {diffusers.__version__}, "
        f"transformers {transformers.__version__}"
    )
