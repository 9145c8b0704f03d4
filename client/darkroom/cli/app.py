"""The tree of commands."""

from typing import Annotated

import typer

from darkroom.cli import (
    account,
    batches,
    browser,
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
            "--version", callback=_say_version, is_eager=True, help="Show the version and exit."
        ),
    ] = False,
) -> None:
    pass


for _module in (generate, search, images):
    _module.register(app)
for _name, _group in (
    ("jobs", jobs.app),
    ("batch", batches.app),
    ("webhooks", webhooks.app),
    ("workers", workers.app),
):
    app.add_typer(_group, name=_name)
for _module in (account, doctor, browser):
    _module.register(app)
