"""The tree of commands."""

from typing import Annotated

import typer

from darkroom.cli import (
    admin,
    batches,
    doctor,
    generate,
    images,
    jobs,
    login,
    mcp,
    search,
    watch,
    webhooks,
)
from darkroom.cli.command import GENERATE, OPERATE

app = typer.Typer(
    name="darkroom",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Generate images with a Darkroom server, and find them again.",
    epilog="Results go to stdout, everything else to stderr. `darkroom doctor` finds what is wrong "
    "and says what to do about it.",
)


def _print_version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        typer.echo(f"darkroom {version('darkroom-client')}")
        raise typer.Exit


@app.callback()
def _root(
    _version: Annotated[
        bool,
        typer.Option(
            "--version",
            metavar="",
            callback=_print_version,
            is_eager=True,
            help="Show the version and exit.",
        ),
    ] = False,
) -> None:
    pass


# Apps without a name add their commands at the top level. The order is that of `--help`.
app.add_typer(generate.app)
app.add_typer(batches.app, name="batch", rich_help_panel=GENERATE)
app.add_typer(jobs.app, name="jobs", rich_help_panel=GENERATE)
app.add_typer(watch.app)
app.add_typer(mcp.app)
app.add_typer(search.app)
app.add_typer(images.app)
app.add_typer(login.app)
app.add_typer(doctor.app)
app.add_typer(admin.app)
app.add_typer(admin.keys, name="keys", rich_help_panel=OPERATE)
app.add_typer(admin.workers, name="workers", rich_help_panel=OPERATE)
app.add_typer(webhooks.app, name="webhooks", rich_help_panel=OPERATE)
