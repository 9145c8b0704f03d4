"""The table of the trials, on the terminal and in docs/reliability.md."""

import os
import platform
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

from tests.chaos.result import Result

_BEGIN = "<!-- the table: written by `make chaos` -->"
_END = "<!-- end of the table -->"
_HEAD = (
    "trial",
    "fault",
    "N (asked)",
    "jobs",
    "lost",
    "twice",
    "GPU runs wasted",
    "recovery p50 / p99 / max, s",
    "holds",
)


def table(results: Sequence[Result]) -> str:
    """In Markdown."""
    return "\n".join(_table(results))


def write_report(results: Sequence[Result], page: Path) -> None:
    """Between the marks of the page; the text around them is a person's."""
    text = page.read_text("utf-8")
    before, _, rest = text.partition(_BEGIN)
    _, _, after = rest.partition(_END)
    where = f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores"
    when = datetime.now(UTC).date().isoformat()
    notes = [f"- **{r.trial}**: {'; '.join(r.notes)}." for r in results if r.notes]
    failed = [f"- **{r.trial}** VIOLATED: {v}" for r in results for v in r.violations[:5]]
    lines = [
        _BEGIN,
        "",
        f"Run of {when} on {where}.",
        "",
        *_table(results),
        "",
        *notes,
        *failed,
        "",
        _END,
    ]
    page.write_text(before + "\n".join(lines) + after, "utf-8")


def _table(results: Sequence[Result]) -> list[str]:
    rows = [_HEAD, tuple("---" for _ in _HEAD), *(_row(result) for result in results)]
    return [f"| {' | '.join(row)} |" for row in rows]


def _row(result: Result) -> tuple[str, ...]:
    recovery = result.recovery
    times = " / ".join(f"{recovery[name]:g}" for name in ("p50", "p99", "max")) if recovery else ""
    baseline = "plain" in result.trial
    return (
        result.trial,
        result.fault,
        f"{result.n}" if result.n >= result.asked else f"{result.n} ({result.asked})",
        str(result.jobs or ""),
        str(result.lost),
        str(result.duplicated),
        str(result.wasted_runs),
        times,
        "baseline" if baseline else "yes" if not result.violations else "**no**",
    )
