"""Options and arguments that several commands have, and what the shell completes for them."""

from collections.abc import Callable, Iterable
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from darkroom.cli.exits import ExitCode
from darkroom.cli.failures import CliError
from darkroom.cli.pictures import Preview

if TYPE_CHECKING:
    from darkroom import Client

_COMPLETION_SECONDS = 1.5


def _ask(question: "Callable[[Client], Iterable[str]]") -> list[str]:
    """The answer of the configured server, or nothing: a completion must neither fail nor wait."""
    try:
        from darkroom import Client

        with Client(timeout=_COMPLETION_SECONDS, retries=0) as client:
            return list(question(client))
    except Exception:  # there is nobody to tell
        return []


def _beginning(names: Iterable[str], incomplete: str) -> list[str]:
    return [name for name in names if name.startswith(incomplete)]


def complete_model(incomplete: str) -> list[str]:
    """Names of models."""
    return _beginning(_ask(lambda client: [each.name for each in client.models.list()]), incomplete)


def complete_scheduler(incomplete: str) -> list[str]:
    """Names of schedulers, of all models."""
    found = _ask(lambda client: (name for each in client.models.list() for name in each.schedulers))
    return _beginning(sorted(set(found)), incomplete)


def complete_session(incomplete: str) -> list[str]:
    """The latest sessions."""
    return _beginning(
        _ask(lambda client: [s.id for s in client.sessions.list().take(50)]), incomplete
    )


def complete_job(incomplete: str) -> list[str]:
    """The latest jobs."""
    return _beginning(_ask(lambda client: [j.id for j in client.jobs.list().take(20)]), incomplete)


def complete_batch(incomplete: str) -> list[str]:
    """The latest batches."""
    return _beginning(
        _ask(lambda client: [b.id for b in client.batches.list().take(20)]), incomplete
    )


def complete_worker(incomplete: str) -> list[str]:
    """Names of workers."""
    return _beginning(
        _ask(lambda client: [each.name for each in client.workers.list()]), incomplete
    )


def moment(text: str) -> datetime:
    """A time: `2026-11-22`, `2026-11-22T10:00`, or `90m`, `36h`, `7d` ago. Local without a zone.

    Raises:
        typer.BadParameter: it is none.
    """
    from datetime import timedelta

    units = {"m": "minutes", "h": "hours", "d": "days"}
    if text[:-1].isdecimal() and text[-1:] in units:
        return datetime.now(UTC) - timedelta(**{units[text[-1]]: int(text[:-1])})
    try:
        return datetime.fromisoformat(text).astimezone()
    except ValueError:
        raise typer.BadParameter(
            f"{text!r} is no time. Write 2026-11-22, 2026-11-22T10:00, or 90m, 36h, 7d ago."
        ) from None


def pair(text: str) -> tuple[str, str]:
    """`name=value`.

    Raises:
        typer.BadParameter: there is no `=`.
    """
    name, is_pair, value = text.partition("=")
    if not is_pair or not name:
        raise typer.BadParameter(f"{text!r} is not name=value.")
    return name, value


def pairs(texts: Iterable[str]) -> dict[str, str]:
    """Several `name=value`."""
    return dict(pair(text) for text in texts)


def given(**fields: Any) -> dict[str, Any]:
    """What was given on the command line, without what was not."""
    return {name: value for name, value in fields.items() if value is not None}


def check_writable(folder: Path) -> None:
    """Find out before any work whether files can be written to a folder, which need not exist.

    Raises:
        CliError: they cannot.
    """
    import tempfile

    existing = folder.absolute()
    while not existing.exists() and existing != existing.parent:
        existing = existing.parent
    try:
        with tempfile.TemporaryFile(dir=existing):
            pass
    except OSError as error:
        raise CliError(
            f"--out {folder}: nothing can be written to {existing}: {error.strerror or error}.",
            ExitCode.USAGE,
            "Give another folder with --out.",
        ) from error


Limit = Annotated[int, typer.Option("--limit", "-n", min=1, help="At most so many.")]
Session = Annotated[
    str | None,
    typer.Option("--session", "-s", metavar="ID", help="Session.", autocompletion=complete_session),
]
Model = Annotated[
    str | None,
    typer.Option(metavar="NAME", help="Model.", autocompletion=complete_model),
]
Scheduler = Annotated[
    str | None,
    typer.Option(metavar="NAME", help="Scheduler.", autocompletion=complete_scheduler),
]
Since = Annotated[
    datetime | None,
    typer.Option(
        metavar="TIME", parser=moment, help="Made after: a date, a time, or 90m, 36h, 7d."
    ),
]
Before = Annotated[
    datetime | None,
    typer.Option(metavar="TIME", parser=moment, help="Made before: like --since."),
]
JobId = Annotated[str, typer.Argument(metavar="JOB", help="job_…", autocompletion=complete_job)]
BatchId = Annotated[
    str, typer.Argument(metavar="BATCH", help="batch_…", autocompletion=complete_batch)
]
ImageId = Annotated[str, typer.Argument(metavar="IMAGE", help="img_…")]
Out = Annotated[
    Path,
    typer.Option(
        "--out", "-o", metavar="DIR", file_okay=False, help="Folder for the pictures; is made."
    ),
]
PreviewOption = Annotated[
    Preview,
    typer.Option(
        "--preview",
        help="How to show pictures here. auto: the best that this terminal can, if it is one.",
    ),
]
Timeout = Annotated[
    float | None,
    typer.Option(metavar="SECONDS", min=0, help="Stop waiting after this; the work goes on."),
]
