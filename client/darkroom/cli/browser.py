"""`darkroom open`: the playground, the documentation, or a picture, in the browser."""

import os
from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated

import typer

from darkroom.cli.command import Cli, command
from darkroom.cli.exits import ExitCode
from darkroom.cli.failures import CliError

if TYPE_CHECKING:
    from darkroom import Client

_PORT = "DARKROOM_PLAYGROUND_PORT"
_DEFAULT_PORT = "8501"


def _playground(client: "Client") -> str:
    """On the server's machine, at the port that `make run` gives it."""
    from urllib.parse import urlsplit

    host = urlsplit(client.url).hostname or "127.0.0.1"
    shown = f"[{host}]" if ":" in host else host
    return f"http://{shown}:{os.environ.get(_PORT, _DEFAULT_PORT)}"


def _docs(client: "Client") -> str:
    return f"{client.url}/docs"


_PLACES: "dict[str, Callable[[Client], str]]" = {"playground": _playground, "docs": _docs}


def open_(
    cli: Cli,
    what: Annotated[
        str,
        typer.Argument(
            metavar="[playground|docs|IMAGE|JOB]",
            help="img_… or job_…: its picture; the link works for some minutes.",
            autocompletion=lambda: ["playground", "docs"],
        ),
    ] = "playground",
    print_only: Annotated[bool, typer.Option("--print", help="Only print the URL.")] = False,
) -> None:
    """Open the playground, the API's documentation, or a picture. Prints the URL as well."""
    url = _find(cli, what)
    opened = not print_only and not cli.output.as_json and _open(url)
    if cli.output.as_json:
        cli.output.document({"url": url})
        return
    cli.output.text(url)
    if not opened and not print_only:
        cli.output.note("[dim]There is no browser here; open the URL on a machine that has one.[/]")


def _find(cli: Cli, what: str) -> str:
    if what in _PLACES:
        return _PLACES[what](cli.client)
    if what.startswith("img_"):
        return cli.client.images.get(what).url
    if what.startswith("job_"):
        for image in cli.client.jobs.get(what).images:
            return image.url
        raise CliError(f"{what} has no picture yet.", ExitCode.NOT_FOUND)
    raise CliError(f"{what!r} is none of playground, docs, img_…, job_….", ExitCode.USAGE)


def _open(url: str) -> bool:
    import webbrowser

    # Without a display `webbrowser` falls back to browsers for terminals, which would take it over.
    has_display = (
        os.name == "nt"
        or os.uname().sysname == "Darwin"
        or any(os.environ.get(name) for name in ("DISPLAY", "WAYLAND_DISPLAY", "BROWSER"))
    )
    return has_display and webbrowser.open(url)


def register(app: typer.Typer, panel: str) -> None:
    """Add the command to the tree, in that panel of its help."""
    command(app, "open", panel=panel, examples=["darkroom open", "darkroom open img_…"])(open_)
