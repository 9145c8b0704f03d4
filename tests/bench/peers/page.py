"""The table of docs/performance.md that compares Darkroom with its peers, from kept cells."""

import os
import platform
import statistics
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

from tests.bench.page import PAGE
from tests.bench.peers.environments import requirements_of
from tests.bench.peers.systems import QUEUES, SERVING, Contender, Darkroom
from tests.pages import markdown, put_into


class Line(NamedTuple):
    """One row of the table: a value of a cell."""

    what: str
    cell: str
    key: str
    best: str = "max"
    """`max`, `min`, or empty where nothing is compared."""
    late: float = 1.0
    """Where a larger share of the jobs was still open, the value is the least that it can be."""


_TOLD = "of the rest, clients that were told"
_LINES: dict[tuple[type[Contender], ...], tuple[Line, ...]] = {
    SERVING: (
        Line("simulated GPU, mixed steps and guidance: images/s", "mixed", "images_per_s"),
        Line("the same, p95, s", "mixed", "p95_s", "min", 0.05),
        Line("simulated GPU, 20 steps each: images/s", "uniform", "images_per_s"),
        Line("the same, p95, s", "uniform", "p95_s", "min", 0.05),
        Line("an interactive job beside 200 in bulk, p50, s", "bulk", "p50_s", "min", 0.5),
        Line("meanwhile, images/s of all", "bulk", "images_per_s"),
        Line("own CPU a job, ms", "uniform", "own_cpu_ms", "min"),
        Line("CPU of the servers a job, ms", "uniform", "server_cpu_ms", "min"),
        Line("`kill -9` of the process with the model, 20 in hand: stored", "kill", "finished"),
        Line(_TOLD, "kill", "told", ""),
        Line("`kill -9` of the worker's container, 20 in hand: stored", "kill all", "finished"),
        Line(_TOLD, "kill all", "told", ""),
        Line("demo model, an image alone, s", "burst", "alone_s", "min"),
        Line("demo model, a burst of 8, images/s", "burst", "images_per_s"),
        Line("the same seed alone and in the burst", "burst", "same"),
        Line("idle memory with the simulated GPU, MB", "idle", "idle_mb", "min"),
        Line("idle memory with the demo model, MB", "demo idle", "idle_mb", "min"),
    ),
    QUEUES: (
        Line("submissions/s, 8 connections", "queue", "submissions_per_s"),
        Line("null jobs/s of one worker", "queue", "null_jobs_per_s"),
    ),
}


def write(found: dict[str, Any]) -> None:
    """Put the table between the marks of the page."""
    put_into(PAGE, {"peers": table(found)})


def table(found: dict[str, Any]) -> str:
    """Date, machine, both tables, where a peer is ahead, and the settings, in Markdown."""
    cells: dict[str, Any] = found["cells"]
    load = max((cell.get("load_before", 0) for cell in cells.values()), default=0)
    text = (
        f"{datetime.now(UTC):%Y-%m-%d}, commit {found['commit']}, {_machine()}; load average before"
        f" a start at most {load:.1f}. Medians and the repeats' spread; **best** of a row.\n"
    )
    ahead = []
    for systems, lines in _LINES.items():
        titles = [system.title for system in systems]
        table_rows = []
        for line in lines:
            rows = [
                [cell for key, cell in cells.items() if key.startswith(f"{it.name}/{line.cell}/")]
                for it in systems
            ]
            medians = [_median(line, row) for row in rows]
            known = [median for median in medians if median is not None]
            best = {"max": max, "min": min}[line.best](known) if line.best and known else None
            written = [_written(line, *each, best) for each in zip(rows, medians, strict=True)]
            table_rows.append([line.what, *written])
            winners = [name for name, at in zip(titles, medians, strict=True) if at == best]
            if None not in (best, medians[0]) and Darkroom.title not in winners:
                ahead.append(f"{line.what} ({', '.join(winners)})")
        text += "\n".join(["", *markdown(["", *titles], table_rows), ""])
    text += f"\nAhead of Darkroom: {'; '.join(ahead) or 'none'}.\n\nSettings:\n\n"
    every: tuple[type[Contender], ...] = (*SERVING, *QUEUES)
    for system in dict.fromkeys(every):
        text += f"- {system.title}{_versions(system)}: {system.settings}.\n"
    return text


def _median(line: Line, cells: Sequence[dict[str, Any]]) -> float | None:
    values = [cell[line.key] for cell in cells if line.key in cell]
    return statistics.median(values) if values else None


def _written(
    line: Line, cells: Sequence[dict[str, Any]], median: float | None, best: float | None
) -> str:
    if median is None:
        return "failed" if any("error" in cell for cell in cells) else "–"
    values = [cell[line.key] for cell in cells if line.key in cell]
    if line.key == "same":
        return "same" if min(values) else "differs"
    text = _short(median)
    if statistics.median(cell.get("late", 0) for cell in cells) > line.late:
        text = f"≥ {text}"
    if median == best:
        text = f"**{text}**"
    return text + (f" ({_short(min(values))} … {_short(max(values))})" if len(values) > 1 else "")


def _short(value: float) -> str:
    return f"{value:.0f}" if value >= 100 or value == int(value) else f"{value:.3g}"


def _versions(system: type[Contender]) -> str:
    """The first line of its requirements, a comment."""
    if system is Darkroom:
        return ""
    return f" ({requirements_of(system.name).read_text('utf-8').splitlines()[0][2:]})"


def _machine() -> str:
    lines = Path("/proc/cpuinfo").read_text("utf-8").splitlines()
    names = [line.partition(": ")[2] for line in lines if line.startswith("model name")]
    return f"{os.cpu_count()} cores ({names[0] if names else platform.machine()})"
