"""`darkroom delete`: throw pictures, jobs, uploads and sessions away, for good."""

import sys
from typing import TYPE_CHECKING, Annotated, Any

import typer

from darkroom.cli.command import Cli, command
from darkroom.cli.exits import ExitCode
from darkroom.cli.failures import CliError
from darkroom.cli.options import complete_session

if TYPE_CHECKING:
    from darkroom.types.images import Deleted

_COUNTS = ("sessions", "jobs", "images", "prompts", "uploads", "objects")


def delete(
    cli: Cli,
    things: Annotated[
        list[str] | None, typer.Argument(metavar="[ID...]", help="img_…, job_… or upl_….")
    ] = None,
    *,
    session: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME",
            help="A session with everything in it. May be repeated.",
            autocompletion=complete_session,
        ),
    ] = None,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
) -> None:
    """Delete pictures, jobs, uploads or whole sessions: rows, files and embeddings.

    It cannot be undone. What waits or runs must be canceled first, and so must jobs that start from
    what is deleted.
    """
    ways = {
        "img_": cli.client.images.delete,
        "job_": cli.client.jobs.delete,
        "upl_": cli.client.uploads.delete,
    }
    chosen: list[tuple[str, Any]] = []
    for thing in things or ():
        way = ways.get(thing[:4])
        if way is None:
            advice = "Sessions are named by --session; batches are not deleted."
            raise CliError(f"{thing} is no picture, job or upload.", ExitCode.USAGE, advice)
        chosen.append((thing, way))
    chosen += [(name, cli.client.sessions.delete) for name in session or ()]
    if not chosen:
        raise CliError("Say what to delete.", ExitCode.USAGE)
    if not yes:
        _ask([name for name, _ in chosen])
    said = []
    for name, way in chosen:
        gone: Deleted = way(name)
        said.append({"id": name, **gone.raw})
        if not cli.output.as_json:
            counted = (f"{getattr(gone, each)} {each}" for each in _COUNTS if getattr(gone, each))
            cli.output.text(f"{name}\t{', '.join(counted)}")
    if cli.output.as_json:
        cli.output.document(said)


def _ask(names: list[str]) -> None:
    if not sys.stdin.isatty():
        advice = "Say --yes: what is deleted cannot be brought back."
        raise CliError("Nobody is there to be asked.", ExitCode.USAGE, advice)
    typer.confirm(f"Delete {', '.join(names)} for good?", abort=True, err=True)


def register(app: typer.Typer, panel: str) -> None:
    """Add the command to the tree, in that panel of its help."""
    command(
        app,
        "delete",
        panel=panel,
        examples=["darkroom delete img_…", "darkroom delete --session drafts --yes"],
    )(delete)
