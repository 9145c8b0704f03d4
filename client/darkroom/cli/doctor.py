"""`darkroom doctor`: what works, what does not, and what to do about it."""

from collections.abc import Iterator

import typer

from darkroom.cli.checks import look_at
from darkroom.cli.command import Cli, command
from darkroom.cli.exits import ExitCode
from darkroom.cli.findings import Check
from darkroom.cli.words import plural, state_markup

_PATIENCE = 8.0
"""Seconds for each answer: a doctor that waits long is no help."""
_SIGNS = {"ok": "✓", "warning": "!", "fault": "✗", "unknown": "·"}


def doctor(cli: Cli) -> None:
    """Look at everything between this machine and a picture, and say what to do.

    The server, clocks, Postgres, Redis, S3, the key, models, workers, the queue, search, webhooks.
    Exit code 10 where something is at fault; warnings leave it 0.
    """
    found: list[Check] = []
    for check in _examine(cli):
        found.append(check)
        if not cli.output.as_json:
            _tell(cli, check)
    faults = sum(check.state == "fault" for check in found)
    warnings = sum(check.state == "warning" for check in found)
    if cli.output.as_json:
        cli.output.document({"healthy": not faults, "checks": found})
    elif faults or warnings:
        cli.output.note(f"\n{plural(faults, 'fault')}, {plural(warnings, 'warning')}.")
    else:
        cli.output.note("\n[green]All is well.[/]")
    if faults:
        raise typer.Exit(ExitCode.FINDING)


def _examine(cli: Cli) -> Iterator[Check]:
    from darkroom import Client, ConfigurationError

    try:
        client = Client(cli.url, cli.api_key, timeout=_PATIENCE, retries=0)
    except ConfigurationError as error:
        advice = "Start a server with `make run`, then `. .darkroom/env`; or give --url, --api-key."
        yield Check("settings", "fault", str(error), advice)
        return
    with client:
        yield from look_at(client)


def _tell(cli: Cli, check: Check) -> None:
    if not cli.output.out.is_terminal:
        cli.output.text("\t".join((check.state, check.name, check.finding, check.advice or "")))
        return
    from rich.markup import escape
    from rich.table import Table

    line = Table.grid(padding=(0, 2, 0, 0))
    line.add_column(width=1)
    line.add_column(width=9, style="bold")
    line.add_column(overflow="fold")
    told = escape(check.finding)
    if check.advice:
        told += f"\n[dim]→ {escape(check.advice)}[/]"
    sign = state_markup(check.state).replace(check.state, _SIGNS[check.state])
    line.add_row(sign, check.name, told)
    cli.output.out.print(line, soft_wrap=False)


def register(app: typer.Typer, panel: str) -> None:
    """Add the command to the tree, in that panel of its help."""
    command(app, "doctor", panel=panel)(doctor)
