"""Options and arguments that several commands share, and their shell completion."""

from collections.abc import Callable, Iterable, Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import msgspec
import typer

from darkroom.cli.failures import CliError, ExitCode
from darkroom.cli.previews import PreviewMode
from darkroom.types.jobs import JobSettings

if TYPE_CHECKING:
    from darkroom import Client

Completer = Callable[[str], list[str]]

_COMPLETION_SECONDS = 1.5


def _completer(names: "Callable[[Client], Iterable[str]]") -> Completer:
    """Complete from what the configured server has; from nothing if it fails or is slow."""

    def complete(incomplete: str) -> list[str]:
        try:
            from darkroom import Client

            with Client(timeout=_COMPLETION_SECONDS, retries=0) as client:
                result = sorted(set(names(client)))
        except Exception:  # there is nobody to tell
            return []
        return [name for name in result if name.startswith(incomplete)]

    return complete


complete_model = _completer(lambda client: (each.name for each in client.models.list()))
complete_scheduler = _completer(
    lambda client: (name for each in client.models.list() for name in each.schedulers)
)
complete_lora = _completer(lambda client: (each.name for each in client.loras.list()))
complete_session = _completer(lambda client: (each.id for each in client.sessions.list().take(50)))
complete_job = _completer(lambda client: (each.id for each in client.jobs.list().take(20)))
complete_batch = _completer(lambda client: (each.id for each in client.batches.list().take(20)))
complete_worker = _completer(lambda client: (each.name for each in client.workers.list()))


def moment(text: str) -> datetime:
    """Parse `2026-11-22`, `2026-11-22T10:00`, or `90m`, `36h`, `7d` ago. Local without a zone.

    Raises:
        typer.BadParameter: it is none of these.
    """
    units = {"m": "minutes", "h": "hours", "d": "days"}
    if text[:-1].isdecimal() and text[-1:] in units:
        return datetime.now(UTC) - timedelta(**{units[text[-1]]: int(text[:-1])})
    try:
        return datetime.fromisoformat(text).astimezone()
    except ValueError:
        raise typer.BadParameter(
            f"{text!r} is not a time. Write 2026-11-22, 2026-11-22T10:00, or 90m, 36h, 7d ago."
        ) from None


def pair(text: str) -> tuple[str, str]:
    """Parse `name=value`.

    Raises:
        typer.BadParameter: it has no name or no `=`.
    """
    name, is_pair, value = text.partition("=")
    if not is_pair or not name:
        raise typer.BadParameter(f"{text!r} is not name=value.")
    return name, value


def pairs(texts: Iterable[str]) -> dict[str, str]:
    """Parse several `name=value`."""
    return dict(pair(text) for text in texts)


def lora_of(text: str) -> dict[str, Any]:
    """Parse `name` or `name:0.8`.

    Raises:
        typer.BadParameter: the scale is not a number.
    """
    name, has_scale, scale = text.partition(":")
    if not has_scale:
        return {"name": name}
    try:
        return {"name": name, "scale": float(scale)}
    except ValueError:
        raise typer.BadParameter(f"{text!r} is not NAME or NAME:SCALE, such as ink:0.8.") from None


def option_facts(source: Mapping[str, Any]) -> list[tuple[str, object]]:
    """The options that the JSON of a job, a dry run or a receipt has, unless at their defaults."""
    return [
        (field.name.replace("_", " "), _shown(source[field.name]))
        for field in msgspec.structs.fields(JobSettings)
        if source.get(field.name, field.default) not in (field.default, [])
    ]


def _shown(value: Any) -> object:
    """An object as the words of its fields; a list one by one."""
    if isinstance(value, list):
        return "; ".join(str(_shown(each)) for each in value)
    if not isinstance(value, dict):
        return value
    return ", ".join(f"{name} {each}" for name, each in value.items() if each is not None)


def given(**fields: Any) -> dict[str, Any]:
    """The fields that were given on the command line."""
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
            f"--out {folder}: cannot write to {existing}: {error.strerror or error}.",
            ExitCode.USAGE,
            "Choose another folder with --out.",
        ) from error


Limit = Annotated[int, typer.Option("--limit", "-n", min=1, help="Show at most this many.")]
Session = Annotated[
    str | None,
    typer.Option(
        "--session", "-s", metavar="ID", help="The session.", autocompletion=complete_session
    ),
]
Model = Annotated[
    str | None,
    typer.Option(metavar="NAME", help="The model.", autocompletion=complete_model),
]
Scheduler = Annotated[
    str | None,
    typer.Option(metavar="NAME", help="The scheduler.", autocompletion=complete_scheduler),
]
Since = Annotated[
    datetime | None,
    typer.Option(
        metavar="TIME",
        parser=moment,
        help="Created after this date or time, or in the last 90m, 36h, 7d, …",
    ),
]
Before = Annotated[
    datetime | None,
    typer.Option(metavar="TIME", parser=moment, help="Created before this; written like --since."),
]
JobId = Annotated[str, typer.Argument(metavar="JOB", help="job_…", autocompletion=complete_job)]
BatchId = Annotated[
    str, typer.Argument(metavar="BATCH", help="batch_…", autocompletion=complete_batch)
]
ImageId = Annotated[str, typer.Argument(metavar="IMAGE", help="img_…")]
ImageIds = Annotated[list[str], typer.Argument(metavar="IMAGE...", help="img_…")]
Out = Annotated[
    Path,
    typer.Option(
        "--out",
        "-o",
        metavar="DIR",
        file_okay=False,
        help="Folder for the images; created if missing.",
    ),
]
PreviewOption = Annotated[
    PreviewMode,
    typer.Option(
        "--preview",
        help="How to show images in this terminal. auto: the best way it supports.",
    ),
]
Detach = Annotated[
    bool, typer.Option("--detach", "-d", help="Only submit, and print the job's id.")
]
Timeout = Annotated[
    float | None,
    typer.Option(metavar="SECONDS", min=0, help="Stop waiting after this; the work continues."),
]
