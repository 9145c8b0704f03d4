"""`darkroom jobs`: list, show, watch, submit, cancel, retry."""

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from darkroom.cli import generate
from darkroom.cli.command import Cli, command
from darkroom.cli.exits import ExitCode
from darkroom.cli.failures import CliError
from darkroom.cli.following import words_of
from darkroom.cli.options import (
    Before,
    JobId,
    Limit,
    PreviewOption,
    Session,
    Since,
    Timeout,
    check_writable,
    complete_job,
    given,
)
from darkroom.cli.output import Column
from darkroom.cli.pictures import Preview
from darkroom.cli.words import ago, milliseconds, state_markup, steps_of

if TYPE_CHECKING:
    from darkroom import Job

app = typer.Typer(no_args_is_help=True, help="Jobs: what was asked for, and what became of it.")

JobIds = Annotated[
    list[str], typer.Argument(metavar="JOB...", help="job_…", autocompletion=complete_job)
]


@command(app, "list", examples=["darkroom jobs list --state failed --since 24h"])
def list_jobs(
    cli: Cli,
    *,
    state: Annotated[
        list[str] | None,
        typer.Option(help="queued, running, succeeded, failed, canceled, expired. Repeatable."),
    ] = None,
    session: Session = None,
    since: Since = None,
    before: Before = None,
    limit: Limit = 20,
) -> None:
    """Jobs, newest first."""
    found = cli.client.jobs.list(
        **given(state=state, session_id=session, created_after=since, created_before=before)
    ).take(limit)
    cli.output.rows(found, _LIST, nothing="There are no such jobs.")


_LIST: "list[Column[Job]]" = [
    Column("job", lambda job: job.id),
    Column("state", lambda job: job.state, lambda job: state_markup(job.state)),
    Column("pictures", lambda job: f"{len(job.images)}/{len(job.seeds)}", right=True),
    Column("prompt", lambda job: job.prompt, wrap=True),
    Column("session", lambda job: job.session_id),
    Column("made", lambda job: job.created_at, lambda job: ago(job.created_at)),
]


@command(app, "show")
def show_job(cli: Cli, job: JobId) -> None:
    """Everything about one job: settings, seeds, attempts, pictures."""
    found = cli.client.jobs.get(job)
    cli.output.facts(_facts(found), found)
    if not cli.output.as_json:
        for warning in found.warnings:
            cli.output.warning(warning.message)


def _facts(job: "Job") -> list[tuple[str, object]]:
    return [
        ("job", job.id),
        ("state", words_of(job)),
        ("error", f"{job.error.code}: {job.error.message}" if job.error else None),
        ("prompt", job.prompt),
        ("negative prompt", job.negative_prompt),
        ("model", job.model),
        ("size", f"{job.width}×{job.height}"),
        ("steps", steps_of(job)),
        ("guidance", f"{job.guidance_scale:g}"),
        ("scheduler", job.scheduler),
        ("initial image", job.init_image),
        ("strength", job.strength),
        ("resize", job.resize_mode),
        ("seeds", ", ".join(str(seed) for seed in job.seeds)),
        ("session", job.session_id),
        ("batch", job.batch_id),
        ("metadata", ", ".join(f"{k}={v}" for k, v in job.metadata.items()) or None),
        ("created", job.created_at),
        ("finished", job.finished_at),
        ("in the queue", milliseconds(job.metrics.queue_ms)),
        ("at work", milliseconds(job.metrics.run_ms)),
        ("GPU-seconds", job.metrics.gpu_seconds),
        *((f"attempt {each.number}", _attempt(each)) for each in job.attempts),
        *((f"picture {each.index + 1}", f"{each.id}, seed {each.seed}") for each in job.images),
    ]


def _attempt(attempt: Any) -> str:
    words = f"{attempt.outcome or 'running'} on {attempt.worker}"
    if attempt.device:
        words += f" ({attempt.device})"
    return f"{words}: {attempt.error.code}" if attempt.error else words


@command(app, "watch", examples=["darkroom jobs watch job_… --out pictures"])
def watch(
    cli: Cli,
    job: JobId,
    out: Annotated[
        Path | None,
        typer.Option("--out", "-o", metavar="DIR", help="Save the pictures here when it is done."),
    ] = None,
    preview: PreviewOption = Preview.AUTO,
    timeout: Timeout = None,
) -> None:
    """Follow a job to its end, wherever it was submitted."""
    if out is not None:
        check_writable(out)
    handle = cli.client.jobs.handle(job)
    handle.refresh()
    generate.watch(cli, handle, out, preview, timeout)


@command(app, "submit", examples=['darkroom jobs submit \'{"prompt": "a lake", "seed": 7}\''])
def submit(
    cli: Cli,
    body: Annotated[
        str, typer.Argument(metavar="BODY", help="JSON of POST /v1/jobs, or - for stdin.")
    ],
) -> None:
    """Submit a job as JSON, e.g. what `inspect` gave, and do not wait. Stdout gets its id."""
    try:
        fields = json.loads(sys.stdin.read() if body == "-" else body)
        prompt = fields.pop("prompt")
    except (ValueError, KeyError, AttributeError, TypeError):
        raise CliError(
            "This is no JSON object with a prompt.", ExitCode.USAGE, "Try: darkroom generate …"
        ) from None
    generate.say_submitted(cli, cli.client.jobs.submit(prompt, **fields))


@command(app, "cancel")
def cancel(cli: Cli, jobs: JobIds) -> None:
    """Cancel jobs: queued ones at once, running ones within a denoising step."""
    _report(cli, [cli.client.jobs.cancel(job) for job in jobs])


@command(app, "retry")
def retry(cli: Cli, jobs: JobIds) -> None:
    """Queue failed, expired or canceled jobs again, with the same seeds."""
    _report(cli, [cli.client.jobs.retry(job) for job in jobs])


def _report(cli: Cli, jobs: "list[Job]") -> None:
    if cli.output.as_json:
        cli.output.document(jobs)
        return
    for job in jobs:
        cli.output.note(f"{job.id} is {words_of(job)}.")
