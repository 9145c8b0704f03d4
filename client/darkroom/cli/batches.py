"""`darkroom batch`: thousands of prompts at once, into a folder."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from darkroom.cli.batch_run import DownloadResult, download, state_of, submit_once
from darkroom.cli.batch_source import STDIN, submittable
from darkroom.cli.command import Cli, command
from darkroom.cli.failures import CliError, ExitCode
from darkroom.cli.options import BatchId, Limit, Session, given, pair
from darkroom.cli.output import Column, age, ago, plural, state_markup
from darkroom.types import Batch, BatchDryRun, BatchError, Finding

app = typer.Typer(no_args_is_help=True, help="Thousands of prompts at once, into a folder.")

_SHOWN_ERRORS = 5


@command(
    app,
    "run",
    examples=[
        "darkroom batch run prompts.jsonl --out images",
        "darkroom batch run products.csv --default steps=25 --on-error skip",
        "darkroom batch run products.csv --template 'a {colour} {name}' --map sku=custom_id",
        "head -20 prompts.txt | darkroom batch run - --out images",
    ],
)
def run(
    cli: Cli,
    file: Annotated[
        Path,
        typer.Argument(
            metavar="FILE|-",
            help="JSONL or CSV, optionally gzipped; or text (.txt) with a prompt on each line. "
            "- reads any of these from stdin.",
        ),
    ],
    *,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out", "-o", metavar="DIR", file_okay=False, help="Default: the file's name, here."
        ),
    ] = None,
    default: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME=VALUE", help="For lines without this field: steps=25. Repeatable."
        ),
    ] = None,
    template: Annotated[
        str | None,
        typer.Option(metavar="TEXT", help="Prompt for every line; {colour} stands for a column."),
    ] = None,
    mapping: Annotated[
        list[str] | None,
        typer.Option(
            "--map",
            metavar="COLUMN=FIELD",
            help="Map a column to a field: sku=custom_id, sku=metadata.sku; COLUMN= ignores it. "
            "Repeatable.",
        ),
    ] = None,
    session: Session = None,
    priority: Annotated[
        int | None, typer.Option(min=0, max=9, help="Order among your own batches; 9 is first.")
    ] = None,
    on_error: Annotated[
        Literal["reject", "skip"] | None,
        typer.Option(help="Whether an invalid line rejects the file or is skipped and reported."),
    ] = None,
    dry_run: Annotated[
        bool,
        typer.Option(
            "--dry-run", help="Validate the file and estimate its cost, without submitting it."
        ),
    ] = False,
) -> None:
    """Submit a file of prompts, and download the images as they are made.

    If it is interrupted, run it again: it resumes the same batch and downloads what is missing. The
    folder gets CUSTOM_ID_SEED.png files, and results.jsonl with a line for each job.
    """
    options = given(
        defaults=_defaults(default) if default else None,
        template=template,
        columns=_columns(mapping) if mapping else None,
        session_id=session,
        priority=priority,
        on_error=on_error,
    )
    if file == STDIN and out is None and not dry_run:
        raise CliError("A batch from stdin needs --out DIR.", ExitCode.USAGE)
    with submittable(file, has_columns=bool(template or mapping)) as source:
        if dry_run:
            _print_dry_run(cli, cli.client.batches.dry_run(file=source, **options))
            return
        folder = out or Path(file.name.split(".")[0])
        state = submit_once(cli, source, folder, options)
    assert state.batch_id is not None  # noqa: S101 - it was submitted
    cli.if_interrupted(
        "The batch continues. Run the same command again to download the rest.",
        f"Pause it: [bold]darkroom batch pause {state.batch_id}[/]   "
        f"Cancel it: [bold]darkroom batch cancel {state.batch_id}[/]",
    )
    _print_result(cli, download(cli, state.batch_id, folder))


@command(app, "fetch", examples=["darkroom batch fetch batch_… --out images"])
def fetch(
    cli: Cli,
    batch: BatchId,
    out: Annotated[
        Path,
        typer.Option("--out", "-o", metavar="DIR", file_okay=False, help="Created if missing."),
    ],
) -> None:
    """Download the images of a batch that was submitted elsewhere, as they are made."""
    cli.if_interrupted("Run the same command again to download the rest.")
    _print_result(cli, download(cli, batch, out))


def _defaults(texts: list[str]) -> dict[str, Any]:
    """Parse `steps=25`, `prompt="…"`: a value that is not JSON is text."""
    result: dict[str, Any] = {}
    for name, value in map(pair, texts):
        try:
            result[name] = json.loads(value)
        except ValueError:
            result[name] = value
    return result


def _columns(texts: list[str]) -> dict[str, list[str] | None]:
    """Parse `sku=custom_id`: a column may set several fields, or, without a name, none."""
    result: dict[str, list[str] | None] = {}
    for column, field in map(pair, texts):
        if field:
            result[column] = [*(result.get(column) or ()), field]
        else:
            result.setdefault(column, None)
    return result


def _print_dry_run(cli: Cli, result: BatchDryRun) -> None:
    estimate = result.estimate
    cli.output.facts(
        [
            ("accepted", "yes" if result.accepted else "no"),
            ("lines", result.lines),
            ("invalid lines", result.invalid_lines or None),
            ("jobs", result.jobs),
            ("refused by a filter", result.refused_jobs or None),
            ("images", result.images),
            ("GPU-seconds", f"about {estimate.gpu_seconds:,.0f}" if estimate else None),
            ("done", ago(result.eta) if result.eta else None),
        ],
        result,
    )
    if not cli.output.as_json:
        _print_errors(cli, result.errors, result.error_count)
    if not result.accepted:
        raise typer.Exit(ExitCode.INVALID)


def _print_errors(
    cli: Cli, errors: Sequence[Finding | BatchError], count: int | None = None
) -> None:
    from rich.markup import escape

    for error in errors[:_SHOWN_ERRORS]:
        line = f"line {error.line}" if error.line is not None else "file"
        what = escape(f"{error.pointer or error.code} {error.message or ''}")
        cli.output.note(f"  [bold]{line}[/] {what}")
    more = (count or len(errors)) - _SHOWN_ERRORS
    if more > 0:
        cli.output.note(f"  … and {more:,} more")


def _print_result(cli: Cli, done: DownloadResult) -> None:
    """Summarise the result; exit with 9 unless every job succeeded."""
    batch = done.batch
    counts = batch.counts
    cli.output.facts(
        [
            ("batch", batch.id),
            ("state", batch.state),
            ("images", done.folder.images),
            ("new", done.new),
            ("folder", done.folder.path),
            ("failed", counts.failed or None),
            ("expired", counts.expired or None),
            ("canceled", counts.canceled or None),
            ("invalid lines", batch.invalid_lines or None),
        ],
        {"batch": batch, "folder": done.folder.path, "new": done.new},
    )
    if batch.state == "succeeded":
        return
    if not cli.output.as_json:
        _explain(cli, batch)
    raise typer.Exit(ExitCode.JOB_FAILED)


def _explain(cli: Cli, batch: Batch) -> None:
    _print_errors(cli, list(cli.client.batches.errors(batch.id)))
    if batch.counts.failed or batch.counts.expired:
        cli.output.note(
            f"[bold]What to do:[/] run darkroom batch retry {batch.id}, then this command again."
        )


@command(app, "list")
def list_batches(
    cli: Cli,
    state: Annotated[
        list[str] | None, typer.Option(help="running, succeeded, partial, … Repeatable.")
    ] = None,
    limit: Limit = 20,
) -> None:
    """List batches, newest first."""
    columns: list[Column[Batch]] = [
        Column("batch", lambda batch: batch.id),
        Column("state", state_of, lambda batch: state_markup(state_of(batch))),
        Column("done", lambda batch: f"{batch.fraction:.0%}", right=True),
        Column("jobs", lambda batch: batch.counts.total, right=True, drop=3),
        Column("failed", _unsuccessful, right=True, drop=1),
        Column("images", _images_of, right=True, drop=2),
        Column("name", lambda batch: batch.name, wrap=True, lines=2),
        Column("age", lambda batch: batch.created_at, lambda batch: age(batch.created_at)),
    ]
    result = cli.client.batches.list(**given(state=state)).take(limit)
    cli.output.rows(result, columns, empty="No such batches.")


def _unsuccessful(batch: Batch) -> int:
    return batch.counts.failed + batch.counts.expired


def _images_of(batch: Batch) -> str:
    return f"{batch.images.done}/{batch.images.total}"


@command(app, "status")
def status(cli: Cli, batch: BatchId) -> None:
    """Show the progress of a batch."""
    result = cli.client.batches.get(batch)
    _show(cli, result)
    counts = result.counts
    if not cli.output.as_json and (counts.failed or counts.expired or result.invalid_lines):
        _print_errors(cli, list(cli.client.batches.errors(batch)))


def _show(cli: Cli, batch: Batch) -> None:
    counts = batch.counts
    names = ("queued", "running", "succeeded", "failed", "expired", "canceled")
    cli.output.facts(
        [
            ("batch", batch.id),
            ("name", batch.name),
            ("state", state_of(batch)),
            ("done", f"{batch.fraction:.0%}"),
            ("jobs", ", ".join(f"{getattr(counts, n):,} {n}" for n in names if getattr(counts, n))),
            ("images", f"{batch.images.done:,} of {batch.images.total:,}"),
            ("invalid lines", batch.invalid_lines or None),
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
    """List all errors of a batch: invalid lines first, then unsuccessful jobs."""
    columns: list[Column[BatchError]] = [
        Column("line", lambda each: each.line, right=True),
        Column("custom id", lambda each: each.custom_id),
        Column("where", lambda each: each.pointer or each.job_id),
        Column("code", lambda each: each.code),
        Column("message", lambda each: each.message, wrap=True),
    ]
    cli.output.rows(cli.client.batches.errors(batch), columns, empty="There are no errors.")


@command(app, "pause")
def pause(cli: Cli, batch: BatchId) -> None:
    """Start no more jobs of a batch; running ones finish. Deadlines keep counting."""
    _print_state(cli, cli.client.batches.pause(batch))


@command(app, "resume")
def resume(cli: Cli, batch: BatchId) -> None:
    """Resume a paused batch."""
    _print_state(cli, cli.client.batches.resume(batch))


@command(app, "cancel")
def cancel(cli: Cli, batch: BatchId) -> None:
    """Cancel a batch: queued jobs at once, running ones within a step. Images stay."""
    _print_state(cli, cli.client.batches.cancel(batch))


def _print_state(cli: Cli, batch: Batch) -> None:
    cli.output.outcome(batch, f"{batch.id} is {state_of(batch)}.")


@command(app, "retry")
def retry(cli: Cli, batch: BatchId) -> None:
    """Queue failed and expired jobs again, with the same seeds."""
    result = cli.client.batches.retry_failed(batch)
    cli.output.outcome(result, f"{plural(result.retried, 'job')} of {batch} queued again.")
