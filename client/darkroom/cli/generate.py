"""`darkroom generate`: from a prompt to pictures in a folder."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from darkroom.cli.command import Cli, command
from darkroom.cli.exits import ExitCode
from darkroom.cli.failures import CliError
from darkroom.cli.following import follow
from darkroom.cli.live import JobView, wants_previews
from darkroom.cli.options import (
    Model,
    Out,
    PreviewOption,
    Scheduler,
    Session,
    Timeout,
    check_writable,
    given,
    pairs,
)
from darkroom.cli.output import Column
from darkroom.cli.pictures import Preview, choose, show
from darkroom.cli.words import ago, milliseconds, plural, steps_of

if TYPE_CHECKING:
    from darkroom import Job, JobDryRun, JobHandle

_REFERENCES = ("img_", "upl_", "https://", "http://", "data:")


def generate(
    cli: Cli,
    prompt: Annotated[str, typer.Argument(metavar="PROMPT", help="What to show.")],
    *,
    negative: Annotated[str | None, typer.Option(metavar="TEXT", help="What not to show.")] = None,
    seed: Annotated[
        int | None, typer.Option(min=0, help="Of the first picture; the next has seed + 1, …")
    ] = None,
    count: Annotated[
        int | None, typer.Option("--n", "-n", min=1, help="How many pictures.")
    ] = None,
    width: Annotated[int | None, typer.Option(help="Pixels, a multiple of 8.")] = None,
    height: Annotated[int | None, typer.Option(help="Pixels, a multiple of 8.")] = None,
    steps: Annotated[int | None, typer.Option(help="Denoising steps.")] = None,
    guidance: Annotated[float | None, typer.Option(help="Guidance scale.")] = None,
    scheduler: Scheduler = None,
    model: Model = None,
    init: Annotated[
        str | None,
        typer.Option(metavar="FILE|ID", help="Start from a picture: a file, img_…, upl_… or URL."),
    ] = None,
    strength: Annotated[
        float | None, typer.Option(help="With --init: how far to leave it, up to 1.")
    ] = None,
    resize: Annotated[
        Literal["fill", "fit", "stretch"] | None,
        typer.Option(
            help="With --init of another shape than --width and --height: crop it (fill, the "
            "default), show all of it, or stretch it. Without a size the picture gets its shape."
        ),
    ] = None,
    session: Session = None,
    metadata: Annotated[
        list[str] | None, typer.Option(metavar="NAME=VALUE", help="Kept with it. Repeatable.")
    ] = None,
    format_name: Annotated[
        Literal["png", "webp", "jpeg"] | None, typer.Option("--format", help="Of the files.")
    ] = None,
    out: Out = Path(),
    preview: PreviewOption = Preview.AUTO,
    timeout: Timeout = None,
    detach: Annotated[
        bool, typer.Option("--detach", "-d", help="Only submit; stdout gets the job's id.")
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Check it, say when it would be done; submit nothing.")
    ] = False,
) -> None:
    """Make pictures from a prompt, and save them.

    What is not given has the model's default; without --seed one is drawn. Stdout gets the files'
    names; what happens meanwhile is on stderr.
    """
    options = given(
        negative_prompt=negative,
        seed=seed,
        num_images=count,
        width=width,
        height=height,
        steps=steps,
        guidance_scale=guidance,
        scheduler=scheduler,
        model=model,
        init_image=_initial(init) if init else None,
        strength=strength,
        resize_mode=resize,
        session_id=session,
        metadata=pairs(metadata) if metadata else None,
        output_format=format_name,
        previews=True if not detach and wants_previews(cli.output, preview) else None,
    )
    if dry_run:
        _show_dry_run(cli, cli.client.jobs.dry_run(prompt, **options))
        return
    if not detach:
        check_writable(out)
    handle = cli.client.jobs.submit(prompt, **options)
    if detach:
        say_submitted(cli, handle)
        return
    watch(cli, handle, out, preview, timeout)


def _initial(text: str) -> Any:
    """What `--init` names: a reference as it is, else a file.

    Raises:
        CliError: it is neither.
    """
    if text.startswith(_REFERENCES):
        return text
    if not Path(text).is_file():
        raise CliError(
            f"--init {text}: there is no such file, and it is no img_…, upl_… or URL.",
            ExitCode.USAGE,
        )
    return Path(text)


def _show_dry_run(cli: Cli, found: "JobDryRun") -> None:
    cli.output.facts(
        [
            ("model", found.model),
            ("size", f"{found.width}×{found.height}"),
            ("steps", steps_of(found)),
            ("guidance", f"{found.guidance_scale:g}"),
            ("scheduler", found.scheduler),
            ("strength", found.strength),
            ("resize", found.resize_mode),
            ("pictures", found.num_images),
            ("pixel-steps", found.cost),
            ("done", f"probably {ago(found.eta.p50)}" if found.eta else None),
        ],
        found,
    )
    if not cli.output.as_json:
        for warning in found.warnings:
            cli.output.warning(warning.message, warning.code)


def say_submitted(cli: Cli, handle: "JobHandle") -> None:
    """The id on stdout; how to go on, on stderr."""
    if cli.output.as_json:
        cli.output.document(handle.job)
        return
    cli.output.text(handle.id)
    _warn(cli, handle)
    cli.output.note(f"[dim]Follow it: darkroom jobs watch {handle.id}[/]")


def watch(
    cli: Cli,
    handle: "JobHandle",
    out: Path | None,
    preview: Preview = Preview.AUTO,
    timeout: float | None = None,
) -> None:
    """Follow a job to its end; save its pictures into `out`, if that is given, and list them."""
    cli.if_interrupted(
        f"The job goes on. Follow it: [bold]darkroom jobs watch {handle.id}[/]   "
        f"Stop it: [bold]darkroom jobs cancel {handle.id}[/]"
    )
    _warn(cli, handle)
    with JobView(cli.output, handle.id, len(handle.job.seeds), preview) as view:
        job = follow(handle, view, timeout)
        pictures = cli.client.jobs.pictures(job)
        view.words("saving")
        files = _save(pictures, out)
    _present(cli, job, files, preview)


def _warn(cli: Cli, handle: "JobHandle") -> None:
    for warning in handle.job.warnings:
        cli.output.warning(warning.message, warning.code)


def _save(pictures: Any, out: Path | None) -> list[dict[str, Any]]:
    saved: list[dict[str, Any]] = []
    try:
        if out is not None:
            out.mkdir(parents=True, exist_ok=True)
        for picture in pictures:
            path = str(picture.save(out)) if out is not None else None
            saved.append({"image_id": picture.id, "seed": picture.seed, "path": path})
    except OSError as error:
        ids = [picture.id for picture in pictures]
        raise CliError(
            f"{out} took {len(saved)} of {plural(len(ids), 'picture')}: {error.strerror or error}.",
            ExitCode.USAGE,
            f"The server has them all. Fetch them: darkroom save {' '.join(ids)} --out DIR",
            {"images": ids, "files": saved},
        ) from error
    return saved


def _present(cli: Cli, job: "Job", files: list[dict[str, Any]], preview: Preview) -> None:
    if cli.output.as_json:
        cli.output.document({"job": job, "files": files})
        return
    way = choose(preview, cli.output.err)
    if way is not Preview.OFF:
        show([Path(f["path"]).read_bytes() for f in files if f["path"]], way, cli.output.err)
    columns: list[Column[dict[str, Any]]] = [
        Column("file", lambda file: file["path"]),
        Column("seed", lambda file: file["seed"], right=True),
        Column("image", lambda file: file["image_id"]),
    ]
    if not any(file["path"] for file in files):
        columns = columns[1:]
    cli.output.rows(files, columns, nothing="The job has no pictures.")
    took = milliseconds(job.metrics.run_ms)
    waited = milliseconds(job.metrics.queue_ms)
    if cli.output.is_live and took and waited:
        made = plural(len(files), "picture")
        cli.output.note(f"[dim]{made} in {took}, after {waited} in the queue · {job.id}[/]")


def register(app: typer.Typer, panel: str) -> None:
    """Add the command to the tree, in that panel of its help."""
    command(
        app,
        "generate",
        panel=panel,
        examples=[
            'darkroom generate "purple mountains at sunset, a lake" --seed 2 --n 4 --out pictures',
            'darkroom generate "the same in winter" --init photo.png --strength 0.6',
        ],
    )(generate)
