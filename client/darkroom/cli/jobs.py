"""`darkroom jobs`: list, show, watch, submit, cancel, retry."""

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from darkroom.cli.command import Cli, command
from darkroom.cli.failures import CliError, ExitCode
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
    option_facts,
)
from darkroom.cli.output import Column, age, duration, plural, state_markup
from darkroom.cli.previews import PreviewMode, choose, show
from darkroom.cli.progress import JobView, follow, status_of

if TYPE_CHECKING:
    from darkroom import Job, JobDryRun, JobHandle

app = typer.Typer(no_args_is_help=True, help="Submitted jobs and their results.")

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
    """List jobs, newest first."""
    columns: list[Column[Job]] = [
        Column("job", lambda job: job.id),
        Column("state", lambda job: job.state, lambda job: state_markup(job.state)),
        Column("images", lambda job: f"{len(job.images)}/{len(job.seeds)}", right=True),
        Column("prompt", lambda job: job.prompt, wrap=True, lines=2),
        Column("session", lambda job: job.session_id, drop=1),
        Column("age", lambda job: job.created_at, lambda job: age(job.created_at)),
    ]
    result = cli.client.jobs.list(
        **given(state=state, session_id=session, created_after=since, created_before=before)
    ).take(limit)
    cli.output.rows(result, columns, empty="No such jobs.")


@command(app, "show")
def show_job(cli: Cli, job: JobId) -> None:
    """Show everything about a job: settings, seeds, attempts, images."""
    result = cli.client.jobs.get(job)
    cli.output.facts(_facts(result), result)
    if not cli.output.as_json:
        warn(cli, result)


def _facts(job: "Job") -> list[tuple[str, object]]:
    return [
        ("job", job.id),
        ("state", status_of(job)),
        ("error", f"{job.error.code}: {job.error.message}" if job.error else None),
        ("prompt", job.prompt),
        ("negative prompt", job.negative_prompt),
        *settings_facts(job),
        ("seeds", ", ".join(str(seed) for seed in job.seeds)),
        ("session", job.session_id),
        ("batch", job.batch_id),
        ("metadata", ", ".join(f"{k}={v}" for k, v in job.metadata.items()) or None),
        ("created", job.created_at),
        ("finished", job.finished_at),
        ("time in queue", _milliseconds(job.metrics.queue_ms)),
        ("run time", _milliseconds(job.metrics.run_ms)),
        ("GPU-seconds", job.metrics.gpu_seconds),
        *((f"attempt {each.number}", _attempt(each)) for each in job.attempts),
        *((f"image {each.index + 1}", f"{each.id}, seed {each.seed}") for each in job.images),
        *(
            (f"image {each.index + 1}", f"refused by {each.filter}: {each.reason}")
            for each in job.images.filtered
        ),
    ]


def settings_facts(job: "Job | JobDryRun") -> list[tuple[str, object]]:
    """How the images are made."""
    return [
        ("model", job.model),
        ("size", f"{job.width}×{job.height}"),
        ("steps", _steps_of(job)),
        ("guidance", f"{job.guidance_scale:g}"),
        ("true CFG", job.true_cfg_scale),
        ("scheduler", job.scheduler),
        ("initial image", getattr(job, "init_image", None)),  # a dry run does not say
        ("strength", job.strength),
        ("resize", job.resize_mode),
        ("LoRAs", ", ".join(f"{lora.name}:{lora.scale:g}" for lora in job.loras) or None),
        *option_facts(job.raw),
    ]


def _steps_of(job: "Job | JobDryRun") -> str:
    """The requested steps, and how many of them run if that is fewer."""
    if job.executed_steps in (None, job.steps):
        return str(job.steps)
    return f"{job.steps}, of which {job.executed_steps} run"


def _milliseconds(value: float | None) -> str | None:
    return None if value is None else duration(value / 1000)


def _attempt(attempt: Any) -> str:
    text = f"{attempt.outcome or 'running'} on {attempt.worker}"
    if attempt.device:
        text += f" ({attempt.device})"
    return f"{text}: {attempt.error.code}" if attempt.error else text


@command(app, "watch", examples=["darkroom jobs watch job_… --out images"])
def watch(
    cli: Cli,
    job: JobId,
    out: Annotated[
        Path | None,
        typer.Option("--out", "-o", metavar="DIR", help="Save the images here when it is done."),
    ] = None,
    preview: PreviewOption = PreviewMode.AUTO,
    timeout: Timeout = None,
) -> None:
    """Follow a job to its end, wherever it was submitted."""
    if out is not None:
        check_writable(out)
    handle = cli.client.jobs.handle(job)
    handle.refresh()
    watch_job(cli, handle, out, preview, timeout)


def watch_job(
    cli: Cli,
    handle: "JobHandle",
    out: Path | None,
    preview: PreviewMode = PreviewMode.AUTO,
    timeout: float | None = None,
) -> None:
    """Follow a job to its end; save its images into `out`, if given, and list them."""
    cli.if_interrupted(
        f"The job continues. Follow it: [bold]darkroom jobs watch {handle.id}[/]   "
        f"Stop it: [bold]darkroom jobs cancel {handle.id}[/]"
    )
    warn(cli, handle.job)
    with JobView(cli.output, handle.id, len(handle.job.seeds), preview) as view:
        job = follow(handle, view, timeout)
        images = cli.client.jobs.image_handles(job)
        view.status("saving")
        files = _save(images, out)
    _print_results(cli, job, files, preview)


def warn(cli: Cli, job: "Job | JobDryRun") -> None:
    """Print the server's warnings about a job."""
    for warning in job.warnings:
        cli.output.warning(warning.message, warning.code)


def _save(images: Any, out: Path | None) -> list[dict[str, Any]]:
    saved: list[dict[str, Any]] = []
    try:
        if out is not None:
            out.mkdir(parents=True, exist_ok=True)
        for image in images:
            path = str(image.save(out)) if out is not None else None
            saved.append({"image_id": image.id, "seed": image.seed, "path": path})
    except OSError as error:
        ids = [image.id for image in images]
        raise CliError(
            f"Saved {len(saved)} of {plural(len(ids), 'image')} to {out}: "
            f"{error.strerror or error}.",
            ExitCode.USAGE,
            f"The server has them all. Fetch them: darkroom save {' '.join(ids)} --out DIR",
            {"images": ids, "files": saved},
        ) from error
    return saved


def _print_results(cli: Cli, job: "Job", files: list[dict[str, Any]], preview: PreviewMode) -> None:
    if cli.output.as_json:
        cli.output.document({"job": job, "files": files})
        return
    way = choose(preview, cli.output.err)
    if way is not PreviewMode.OFF:
        show([Path(f["path"]).read_bytes() for f in files if f["path"]], way, cli.output.err)
    columns: list[Column[dict[str, Any]]] = [
        Column("file", lambda file: file["path"]),
        Column("seed", lambda file: file["seed"], right=True),
        Column("image", lambda file: file["image_id"], drop=1),
    ]
    if not any(file["path"] for file in files):
        columns = columns[1:]
    cli.output.rows(files, columns, empty="The job has no images.")
    ran, queued = _milliseconds(job.metrics.run_ms), _milliseconds(job.metrics.queue_ms)
    if cli.output.is_live and ran and queued:
        count = plural(len(files), "image")
        cli.output.note(f"[dim]{count} in {ran}, after {queued} in the queue · {job.id}[/]")


@command(app, "submit", examples=['darkroom jobs submit \'{"prompt": "a lake", "seed": 7}\''])
def submit(
    cli: Cli,
    body: Annotated[
        str, typer.Argument(metavar="BODY", help="JSON body of POST /v1/jobs, or - for stdin.")
    ],
) -> None:
    """Submit a job as JSON, such as `inspect` prints, without waiting; print its id."""
    try:
        fields = json.loads(sys.stdin.read() if body == "-" else body)
        prompt = fields.pop("prompt")
    except (ValueError, KeyError, AttributeError, TypeError):
        raise CliError(
            "This is not a JSON object with a prompt.", ExitCode.USAGE, "Try: darkroom generate …"
        ) from None
    print_submitted(cli, cli.client.jobs.submit(prompt, extra_body=fields))


def print_submitted(cli: Cli, handle: "JobHandle") -> None:
    """Print the id to stdout, and how to follow the job to stderr."""
    if cli.output.as_json:
        cli.output.document(handle.job)
        return
    cli.output.text(handle.id)
    warn(cli, handle.job)
    cli.output.note(f"[dim]Follow it: darkroom jobs watch {handle.id}[/]")


@command(app, "cancel")
def cancel(cli: Cli, jobs: JobIds) -> None:
    """Cancel jobs: queued ones at once, running ones within one denoising step."""
    _print_states(cli, [cli.client.jobs.cancel(job) for job in jobs])


@command(app, "retry")
def retry(cli: Cli, jobs: JobIds) -> None:
    """Queue failed, expired or canceled jobs again, with the same seeds."""
    _print_states(cli, [cli.client.jobs.retry(job) for job in jobs])


def _print_states(cli: Cli, jobs: "list[Job]") -> None:
    cli.output.outcome(jobs, *(f"{job.id} is {status_of(job)}." for job in jobs))
