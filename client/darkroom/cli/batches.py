"""`darkroom batch`: thousands of prompts at once, into a folder."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from darkroom.cli.command import Cli, command
from darkroom.cli.exits import ExitCode
from darkroom.cli.options import BatchId, Limit, Session, given, pair
from darkroom.cli.output import Column
from darkroom.cli.words import ago, plural, short, state_markup

if TYPE_CHECKING:
    from darkroom import Batch, BatchDryRun, BatchError
    from darkroom.cli.batch_run import Finished

app = typer.Typer(no_args_is_help=True, help="Thousands of prompts at once, into a folder.")

_SHOWN_ERRORS = 5


@command(
    app,
    "run",
    examples=[
        "darkroom batch run prompts.jsonl --out pictures",
        "darkroom batch run products.csv --default steps=25 --on-error skip",
        "darkroom batch run products.csv --template 'a {colour} {name}' --map sku=custom_id",
    ],
)
def run(
    cli: Cli,
    file: Annotated[
        Path,
        typer.Argument(
            metavar="FILE", exists=True, dir_okay=False, readable=True, help="JSONL or CSV, or .gz."
        ),
    ],
    *,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out", "-o", metavar="DIR", file_okay=False, help="Default: named as the file, here."
        ),
    ] = None,
    default: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME=VALUE", help="For lines that do not say: steps=25. Repeatable."),
    ] = None,
    template: Annotated[
        str | None,
        typer.Option(
            metavar="TEXT", help="The prompt of all lines: 'a {colour} hat' has a column."
        ),
    ] = None,
    mapping: Annotated[
        list[str] | None,
        typer.Option(
            "--map",
            metavar="COLUMN=FIELD",
            help="What a column is: sku=custom_id, sku=metadata.sku; COLUMN= for nothing. "
            "Repeatable.",
        ),
    ] = None,
    session: Session = None,
    priority: Annotated[
        int | None, typer.Option(min=0, max=9, help="Before your other batches, or after.")
    ] = None,
    on_error: Annotated[
        Literal["reject", "skip"] | None,
        typer.Option(help="What a bad line does: refuse the file, or only be reported."),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Check the file and say what it would be.")
    ] = False,
) -> None:
    """Submit a file of prompts, and fetch the pictures as they are made.

    Run it again after whatever stopped it: it goes on with the same batch, and fetches what is
    missing. The folder gets CUSTOM_ID_SEED.png, and results.jsonl with a line for each job.
    """
    from darkroom.cli.batch_run import collect, submit_once

    options = given(
        defaults=_defaults(default) if default else None,
        template=template,
        columns=_columns(mapping) if mapping else None,
        session_id=session,
        priority=priority,
        on_error=on_error,
    )
    if dry_run:
        _show_dry_run(cli, cli.client.batches.dry_run(file=file, **options))
        return
    folder = out or Path(file.name.split(".")[0])
    state = submit_once(cli, file, folder, options)
    assert state.batch_id is not None  # noqa: S101 - it was submitted
    cli.if_interrupted(
        "The batch goes on. Run the same command again to fetch the rest.",
        f"Hold it: [bold]darkroom batch pause {state.batch_id}[/]   "
        f"End it: [bold]darkroom batch cancel {state.batch_id}[/]",
    )
    _finish(cli, collect(cli, state.batch_id, folder))


@command(app, "fetch", examples=["darkroom batch fetch batch_… --out pictures"])
def fetch(
    cli: Cli,
    batch: BatchId,
    out: Annotated[
        Path, typer.Option("--out", "-o", metavar="DIR", file_okay=False, help="Is made.")
    ],
) -> None:
    """Fetch the pictures of a batch that was submitted elsewhere, as they are made."""
    from darkroom.cli.batch_run import collect

    cli.if_interrupted("Run the same command again to fetch the rest.")
    _finish(cli, collect(cli, batch, out))


def _defaults(texts: list[str]) -> dict[str, Any]:
    """`steps=25`, `prompt="…"`: a value is JSON where it is that, else text."""
    found: dict[str, Any] = {}
    for name, value in map(pair, texts):
        try:
            found[name] = json.loads(value)
        except ValueError:
            found[name] = value
    return found


def _columns(texts: list[str]) -> dict[str, list[str] | None]:
    """`sku=custom_id`: a column may be several fields, or, without a name, none."""
    found: dict[str, list[str] | None] = {}
    for column, field in map(pair, texts):
        if field:
            found[column] = [*(found.get(column) or ()), field]
        else:
            found.setdefault(column, None)
    return found


def _show_dry_run(cli: Cli, found: "BatchDryRun") -> None:
    estimate = found.estimate
    cli.output.facts(
        [
            ("accepted", "yes" if found.accepted else "no"),
            ("lines", found.lines),
            ("bad lines", found.invalid_lines or None),
            ("jobs", found.jobs),
            ("pictures", found.images),
            ("GPU-seconds", f"about {estimate.gpu_seconds:,.0f}" if estimate else None),
        ],
        found,
    )
    if not cli.output.as_json:
        _note_errors(cli, [(e.line, e.pointer, e.message) for e in found.errors], found.error_count)
    if not found.accepted:
        raise typer.Exit(ExitCode.INVALID)


def _note_errors(cli: Cli, errors: list[tuple[Any, Any, str]], count: int) -> None:
    from rich.markup import escape

    for line, pointer, message in errors[:_SHOWN_ERRORS]:
        where = f"line {line}" if line is not None else "file"
        cli.output.note(f"  [bold]{where}[/] {escape(pointer or '')} {escape(message)}")
    if count > _SHOWN_ERRORS:
        cli.output.note(f"  … and {count - _SHOWN_ERRORS:,} more")


def _finish(cli: Cli, done: "Finished") -> None:
    """Say what came of it; exit 9 unless every job became pictures."""
    batch = done.batch
    counts = batch.counts
    cli.output.facts(
        [
            ("batch", batch.id),
            ("state", batch.state),
            ("pictures", done.folder.pictures),
            ("new", done.new),
            ("folder", done.folder.path),
            ("failed", counts.failed or None),
            ("expired", counts.expired or None),
            ("canceled", counts.canceled or None),
            ("bad lines", batch.invalid_lines or None),
        ],
        {"batch": batch, "folder": done.folder.path, "new": done.new},
    )
    if batch.state == "succeeded":
        return
    if not cli.output.as_json:
        _explain(cli, batch)
    raise typer.Exit(ExitCode.JOB_FAILED)


def _explain(cli: Cli, batch: "Batch") -> None:
    errors = list(cli.client.batches.errors(batch.id))
    shown = [(each.line, each.pointer or each.code, each.message or "") for each in errors]
    _note_errors(cli, shown, len(errors))
    if batch.counts.failed or batch.counts.expired:
        cli.output.note(
            f"[bold]What to do:[/] darkroom batch retry {batch.id}, then run this again."
        )


@command(app, "list")
def list_batches(
    cli: Cli,
    state: Annotated[
        list[str] | None, typer.Option(help="running, succeeded, partial, … Repeatable.")
    ] = None,
    limit: Limit = 20,
) -> None:
    """Batches, newest first."""
    columns: list[Column[Batch]] = [
        Column("batch", lambda batch: batch.id),
        Column("state", _state, lambda batch: state_markup(_state(batch))),
        Column("done", lambda batch: f"{batch.fraction:.0%}", right=True),
        Column("jobs", lambda batch: batch.counts.total, right=True),
        Column("failed", lambda batch: batch.counts.failed + batch.counts.expired, right=True),
        Column("pictures", lambda batch: f"{batch.images.done}/{batch.images.total}", right=True),
        Column("made", lambda batch: batch.created_at, lambda batch: ago(batch.created_at)),
    ]
    found = cli.client.batches.list(**given(state=state)).take(limit)
    cli.output.rows(found, columns, nothing="There are no such batches.")


def _state(batch: "Batch") -> str:
    return "paused" if batch.paused and not batch.is_final else batch.state


@command(app, "status")
def status(cli: Cli, batch: BatchId) -> None:
    """How a batch stands, and its first errors."""
    found = cli.client.batches.get(batch)
    _show(cli, found)
    counts = found.counts
    if not cli.output.as_json and (counts.failed or counts.expired or found.invalid_lines):
        errors = list(cli.client.batches.errors(batch))
        shown = [(e.line, e.pointer or e.code, short(e.message or "")) for e in errors]
        _note_errors(cli, shown, len(errors))


def _show(cli: Cli, batch: "Batch") -> None:
    counts = batch.counts
    told = ("queued", "running", "succeeded", "failed", "expired", "canceled")
    cli.output.facts(
        [
            ("batch", batch.id),
            ("state", _state(batch)),
            ("done", f"{batch.fraction:.0%}"),
            ("jobs", ", ".join(f"{getattr(counts, n):,} {n}" for n in told if getattr(counts, n))),
            ("pictures", f"{batch.images.done:,} of {batch.images.total:,}"),
            ("bad lines", batch.invalid_lines or None),
            ("rate", f"{batch.rate.jobs_per_second:.2f} jobs/s" if batch.rate else None),
            ("done", ago(batch.eta) if batch.eta and not batch.is_final else None),
            ("session", batch.session_id),
            ("priority", batch.priority),
            ("created", batch.created_at),
            ("finished", batch.finished_at),
        ],
        batch,
    )


@command(app, "errors", examples=["darkroom batch errors batch_… --json"])
def errors(cli: Cli, batch: BatchId) -> None:
    """Everything wrong with a batch: bad lines, then jobs without success."""
    columns: list[Column[BatchError]] = [
        Column("line", lambda each: each.line, right=True),
        Column("name", lambda each: each.custom_id),
        Column("where", lambda each: each.pointer or each.job_id),
        Column("code", lambda each: each.code),
        Column("message", lambda each: each.message, wrap=True),
    ]
    cli.output.rows(cli.client.batches.errors(batch), columns, nothing="Nothing is wrong.")


@command(app, "pause")
def pause(cli: Cli, batch: BatchId) -> None:
    """Start no more of its jobs; those that run are finished. Deadlines go on counting."""
    _steered(cli, cli.client.batches.pause(batch))


@command(app, "resume")
def resume(cli: Cli, batch: BatchId) -> None:
    """Let a paused batch go on."""
    _steered(cli, cli.client.batches.resume(batch))


@command(app, "cancel")
def cancel(cli: Cli, batch: BatchId) -> None:
    """End a batch. Waiting jobs end at once, running ones within a step; pictures stay."""
    _steered(cli, cli.client.batches.cancel(batch))


def _steered(cli: Cli, batch: "Batch") -> None:
    if cli.output.as_json:
        cli.output.document(batch)
    else:
        cli.output.note(f"{batch.id} is {_state(batch)}.")


@command(app, "retry")
def retry(cli: Cli, batch: BatchId) -> None:
    """Queue again what failed or expired, with the same seeds."""
    done = cli.client.batches.retry_failed(batch)
    if cli.output.as_json:
        cli.output.document(done)
    else:
        cli.output.note(f"{plural(done.retried, 'job')} of {done.batch.id} queued again.")
