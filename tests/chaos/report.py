"""The table of the trials, on the terminal and in docs/reliability.md."""

import os
import platform
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

from tests.chaos.result import Result
from tests.pages import markdown, put_into

_HEAD = (
    "trial",
    "fault",
    "N (planned)",
    "jobs",
    "GPU runs wasted",
    "recovery p50 / p99 / max, s",
    "",
)
_CHECKER_HEAD = ("broken build", "defect", "checker", "holds without it")
_BROKEN, _WHOLE = "broken: ", "whole: "


def table(results: Sequence[Result]) -> str:
    """In Markdown."""
    return "\n".join([*_table(results), "", *_checker(results)])


def write_report(results: Sequence[Result], page: Path) -> None:
    """Between the marks of the page; the text around them is a person's."""
    where = f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores"
    when = datetime.now(UTC).date().isoformat()
    failed = [f"- **{r.trial}** VIOLATED: {v}" for r in results for v in r.violations[:5]]
    lines = [
        f"\nRun of {when} on {where}.\n",
        *_table(results),
        "",
        *failed,
        "",
        *_checker(results),
        "\n",
    ]
    put_into(page, {"trials": "\n".join(lines)})


def _table(results: Sequence[Result]) -> list[str]:
    said = set[str]()
    return markdown(
        _HEAD,
        [
            (*_row(result), "; ".join(_losses(result) + _new(result.notes, said)))
            for result in results
            if not _of_checker(result)
        ],
    )


def _new(notes: Sequence[str], said: set[str]) -> list[str]:
    """What no row above has said."""
    new = [note for note in notes if note not in said]
    said.update(new)
    return new


def _losses(result: Result) -> list[str]:
    """What a job queue must not do, where it did."""
    counts = {"lost": result.lost, "done twice": result.duplicated}
    return [f"**{count} {what}**" for what, count in counts.items() if count]


def _checker(results: Sequence[Result]) -> list[str]:
    """What the checker found in builds that are broken on purpose, and in the same ones mended."""
    by_trial = {result.trial: result for result in results}
    rows = []
    for trial, found in by_trial.items():
        build = trial.removeprefix(_BROKEN)
        whole = by_trial.get(_WHOLE + build)
        if trial.startswith(_BROKEN) and whole:
            rows.append(
                (
                    build,
                    found.fault,
                    "; ".join(found.notes),
                    "**no**" if whole.violations else "yes",
                )
            )
    return markdown(_CHECKER_HEAD, rows) if rows else []


def _of_checker(result: Result) -> bool:
    return result.trial.startswith((_BROKEN, _WHOLE))


def _row(result: Result) -> tuple[str, ...]:
    recovery = result.recovery
    times = [f"{recovery[name]:g}" for name in ("p50", "p99", "max") if recovery]
    return (
        result.trial + (" **VIOLATED**" if result.violations else ""),
        result.fault,
        f"{result.n}" if result.n >= result.asked else f"{result.n} ({result.asked})",
        str(result.jobs or ""),
        str(result.wasted_runs),
        times[0] if len(set(times)) == 1 else " / ".join(times),
    )
