"""`darkroom workers`: who makes the pictures, and who shall rest. For operators."""

from typing import TYPE_CHECKING, Annotated

import typer

from darkroom.cli.command import Cli, command
from darkroom.cli.options import complete_worker
from darkroom.cli.output import Column
from darkroom.cli.words import ago, size, span, state_markup

if TYPE_CHECKING:
    from darkroom import Worker

app = typer.Typer(no_args_is_help=True, help="Workers of all tenants. Needs the scope operator.")

WorkerName = Annotated[
    str, typer.Argument(metavar="WORKER", help="Its name.", autocompletion=complete_worker)
]


@command(app, "list")
def list_workers(cli: Cli) -> None:
    """Live workers, and those told to rest when they come back."""
    columns: list[Column[Worker]] = [
        Column("worker", lambda worker: worker.name),
        Column("kind", lambda worker: worker.kind),
        Column("state", lambda worker: worker.state, lambda worker: state_markup(worker.state)),
        Column("device", lambda worker: worker.device),
        Column("models", _models, wrap=True),
        Column("jobs", lambda worker: worker.jobs, right=True),
        Column("heard of", _heard_of),
        Column("since", lambda worker: worker.started_at, lambda worker: ago(worker.started_at)),
    ]
    cli.output.rows(cli.client.workers.list(), columns, nothing="No worker is alive.")


def _models(worker: "Worker") -> str:
    return ", ".join(
        each.name if each.state == "warm" else f"{each.name} ({each.state})"
        for each in worker.models
    )


def _heard_of(worker: "Worker") -> str | None:
    return None if worker.lag is None else f"{span(worker.lag)} ago"


@command(app, "show")
def show(cli: Cli, worker: WorkerName) -> None:
    """One worker."""
    _show(cli, cli.client.workers.get(worker))


def _show(cli: Cli, worker: "Worker") -> None:
    drain = worker.drain
    cli.output.facts(
        [
            ("worker", worker.name),
            ("kind", worker.kind),
            ("state", worker.state),
            ("device", worker.device),
            ("models", _models(worker) or None),
            ("in hand", worker.jobs),
            ("at once", worker.threads),
            ("models' memory", size(worker.memory.used) if worker.memory.used else None),
            ("leads the dispatcher", "yes" if worker.dispatches else None),
            ("heard of", _heard_of(worker)),
            ("version", worker.version),
            ("started", worker.started_at),
            ("drain asked for", drain.requested_at if drain else None),
            ("can be stopped", f"since {drain.drained_at}" if drain and drain.drained_at else None),
        ],
        worker,
    )


@command(app, "drain")
def drain(cli: Cli, worker: WorkerName) -> None:
    """Let a worker finish what it has, and take no more. `show` tells when it is done."""
    _show(cli, cli.client.workers.drain(worker))


@command(app, "resume")
def resume(cli: Cli, worker: WorkerName) -> None:
    """Let a drained worker take work again."""
    _show(cli, cli.client.workers.resume(worker))
