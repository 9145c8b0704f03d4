"""The tree of commands."""

from typing import Annotated

import typer

from darkroom.cli import (
    account,
    batches,
    browser,
    deletion,
    doctor,
    generate,
    images,
    jobs,
    search,
    webhooks,
    workers,
)

app = typer.Typer(
    name="darkroom",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Make pictures with a Darkroom server, and find them again.",
    epilog="Results go to stdout, everything else to stderr. "
    "[dim]darkroom doctor[/] says what is wrong and what to do about it.",
)


def _say_version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        typer.echo(f"darkroom {version('darkroom')}")
        raise typer.Exit


@app.callback()
def _root(
    _version: Annotated[
        bool,
        typer.Option(
            "--version",
            metavar="",
            callback=_say_version,
            is_eager=True,
            help="Show the version and exit.",
        ),
    ] = False,
) -> None:
    pass


_MAKE, _FIND, _OPERATE = "Make pictures", "Find and keep them", "Look after the server"

generate.register(app, _MAKE)
app.add_typer(batches.app, name="batch", rich_help_panel=_MAKE)
app.add_typer(jobs.app, name="jobs", rich_help_panel=_MAKE)
search.register(app, _FIND)
images.register(app, _FIND)
deletion.register(app, _FIND)
browser.register(app, _FIND)
doctor.register(app, _OPERATE)
account.register(app, _OPERATE)
app.add_typer(workers.app, name="workers", rich_help_panel=_OPERATE)
app.add_typer(webhooks.app, name="webhooks", rich_help_panel=_OPERATE)
