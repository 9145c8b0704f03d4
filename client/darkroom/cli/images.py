"""`darkroom save`, `open`, `inspect`, `reproduce`, `upscale`, `star` and `delete`: images."""

import json
import os
import sys
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from darkroom.cli.command import FIND, Cli, command
from darkroom.cli.failures import CliError, ExitCode
from darkroom.cli.jobs import print_submitted, watch_job
from darkroom.cli.options import (
    Detach,
    ImageId,
    ImageIds,
    Out,
    PreviewOption,
    Timeout,
    check_writable,
    complete_session,
    option_facts,
)
from darkroom.cli.previews import PreviewMode, choose, show
from darkroom.types.images import Deleted, Inspection, Provenance

app = typer.Typer()

_VERDICTS = {"identical": "green", "equivalent": "yellow", "different": "red"}
_COUNTS = ("sessions", "jobs", "images", "prompts", "uploads", "objects")
"""What a deletion counts."""
_DEFAULT_PLAYGROUND_PORT = "8501"


@command(app, "reproduce", panel=FIND, examples=["darkroom reproduce img_…"])
def reproduce(cli: Cli, image: ImageId, timeout: Timeout = None) -> None:
    """Make an image again from its receipt, and compare the two.

    identical: every pixel is equal. equivalent: no channel of any pixel differs by more than 8 of
    255. different: some channel does, and the exit code is 10.
    """
    cli.if_interrupted(
        f"The work continues. Run [bold]darkroom reproduce {image}[/] again for the result; "
        "it does not start a second job."
    )
    with cli.output.busy(f"making {image} again"):
        result = cli.client.images.reproduce(image, timeout=timeout)
    if cli.output.as_json or not cli.output.out.is_terminal:
        cli.output.facts(
            [
                ("verdict", result.verdict),
                ("largest difference", result.max_pixel_difference),
                ("reason", result.reason),
                ("new image", result.image.id if result.image else None),
            ],
            result,
        )
    else:
        colour = _VERDICTS.get(result.verdict or "", "bold")
        cli.output.out.print(f"[bold {colour}]{result.verdict}[/]  {result.reason}")
        if result.image:
            cli.output.note(f"[dim]The new image is {result.image.id}.[/]")
    if result.verdict == "different":
        raise typer.Exit(ExitCode.FINDING)


@command(app, "inspect", panel=FIND, examples=["darkroom inspect image.png"])
def inspect(
    cli: Cli,
    file: Annotated[
        Path,
        typer.Argument(
            metavar="FILE", exists=True, dir_okay=False, readable=True, help="An image file."
        ),
    ],
) -> None:
    """Read the receipt in a file: how Darkroom made it, and whether it is one of yours."""
    result = cli.client.images.inspect(file)
    cli.output.facts(_receipt_facts(result), result)
    if not cli.output.as_json:
        for note in result.notes:
            cli.output.warning(note)


def _receipt_facts(result: Inspection) -> list[tuple[str, object]]:
    receipt = result.receipt
    model: Any = receipt.get("model") or {}
    scheduler: Any = receipt.get("scheduler") or {}
    body = json.dumps(result.job, ensure_ascii=False).replace("'", "'\\''")
    return [
        ("image", result.image.id if result.image else "not yours: no such file is on record"),
        ("prompt", receipt.get("prompt")),
        ("negative prompt", receipt.get("negative_prompt") or None),
        ("seed", receipt.get("seed")),
        ("model", model.get("name") if isinstance(model, dict) else model),
        ("size", f"{receipt.get('width')}×{receipt.get('height')}"),
        ("steps", receipt.get("steps")),
        ("guidance", receipt.get("guidance_scale")),
        ("true CFG", receipt.get("true_cfg_scale")),
        ("scheduler", scheduler.get("name") if isinstance(scheduler, dict) else scheduler),
        ("strength", receipt.get("strength")),
        ("resize", receipt.get("resize_mode")),
        *option_facts(receipt),
        ("device", receipt.get("device")),
        ("provenance", _provenance_text(result.provenance)),
        ("to make it again", f"darkroom jobs submit '{body}'"),
    ]


def _provenance_text(provenance: Provenance | None) -> str | None:
    if provenance is None:
        return None
    if provenance.manifest is None:
        return provenance.state
    manifest = provenance.manifest
    codes = ", ".join(str(problem.code) for problem in manifest.problems)
    signer = f"signed by {manifest.issuer}" if manifest.issuer else "no signer"
    return f"{provenance.state}: {signer}{f' ({codes})' if codes else ''}"


@command(app, "star", panel=FIND, examples=["darkroom star img_…", "darkroom star --remove img_…"])
def star(
    cli: Cli,
    images: ImageIds,
    remove: Annotated[bool, typer.Option("--remove", help="Remove the star.")] = False,
) -> None:
    """Star images: searches can filter by stars, and recommendations prefer their prompts."""
    change = cli.client.images.unstar if remove else cli.client.images.star
    changed = [change(image) for image in images]
    stars = (f"{'[yellow]★[/]' if image.starred else '☆'} {image.id}" for image in changed)
    cli.output.outcome(changed, *stars)


@command(app, "save", panel=FIND, examples=["darkroom save img_… --out images"])
def save(
    cli: Cli, images: ImageIds, out: Out = Path(), preview: PreviewOption = PreviewMode.AUTO
) -> None:
    """Download images, named by their ids, and verify their SHA-256."""
    out.mkdir(parents=True, exist_ok=True)
    way = PreviewMode.OFF if cli.output.as_json else choose(preview, cli.output.err)
    saved = []
    for image in images:
        path = cli.client.images.save(image, out)
        saved.append({"image_id": image, "path": str(path)})
        if way is not PreviewMode.OFF:
            show([path.read_bytes()], way, cli.output.err)
        if not cli.output.as_json:
            cli.output.text(str(path))
    if cli.output.as_json:
        cli.output.document(saved)


@command(
    app,
    "upscale",
    panel=FIND,
    examples=["darkroom upscale img_…", "darkroom upscale img_… --scale 1.5 --method latent"],
)
def upscale(
    cli: Cli,
    image: ImageId,
    *,
    scale: Annotated[
        float | None, typer.Option(help="How many times larger, up to 4 (default 2).")
    ] = None,
    method: Annotated[
        Literal["lanczos", "latent"] | None,
        typer.Option(
            help="lanczos (default): resample the pixels. latent: paint details with the image's "
            "own prompt and seed."
        ),
    ] = None,
    strength: Annotated[
        float | None,
        typer.Option(help="With latent: how much to change the image, up to 1 (default 0.7)."),
    ] = None,
    steps: Annotated[
        int | None, typer.Option(help="With latent: number of denoising steps.")
    ] = None,
    out: Out = Path(),
    preview: PreviewOption = PreviewMode.AUTO,
    timeout: Timeout = None,
    detach: Detach = False,
) -> None:
    """Make an image larger, and save the result."""
    if not detach:
        check_writable(out)
    handle = cli.client.images.upscale(image, scale, method, strength=strength, steps=steps)
    if detach:
        print_submitted(cli, handle)
    else:
        watch_job(cli, handle, out, preview, timeout)


@command(
    app,
    "delete",
    panel=FIND,
    examples=["darkroom delete img_…", "darkroom delete --session drafts --yes"],
)
def delete(
    cli: Cli,
    ids: Annotated[
        list[str] | None, typer.Argument(metavar="[ID...]", help="img_…, job_… or upl_….")
    ] = None,
    *,
    session: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME",
            help="A session with everything in it. Repeatable.",
            autocompletion=complete_session,
        ),
    ] = None,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask for confirmation.")] = False,
) -> None:
    """Permanently delete images, jobs, uploads or whole sessions, with files and embeddings.

    Queued and running jobs must be canceled first, as must jobs that start from a deleted image.
    """
    methods = {
        "img_": cli.client.images.delete,
        "job_": cli.client.jobs.delete,
        "upl_": cli.client.uploads.delete,
    }
    chosen: list[tuple[str, Any]] = []
    for each in ids or ():
        method = methods.get(each[:4])
        if method is None:
            advice = "Name sessions with --session. Batches cannot be deleted."
            raise CliError(f"{each} is not an image, job or upload.", ExitCode.USAGE, advice)
        chosen.append((each, method))
    chosen += [(name, cli.client.sessions.delete) for name in session or ()]
    if not chosen:
        raise CliError("Say what to delete.", ExitCode.USAGE)
    if not yes:
        _confirm([name for name, _ in chosen])
    results = []
    for name, method in chosen:
        deleted: Deleted = method(name)
        results.append({"id": name, **deleted.raw})
        if not cli.output.as_json:
            counts = [(getattr(deleted, each), each) for each in _COUNTS]
            cli.output.text(f"{name}\t{', '.join(f'{count} {n}' for count, n in counts if count)}")
    if cli.output.as_json:
        cli.output.document(results)


def _confirm(names: list[str]) -> None:
    if not sys.stdin.isatty():
        raise CliError(
            "Deleting needs confirmation, and stdin is not a terminal.",
            ExitCode.USAGE,
            "Pass --yes. A deletion cannot be undone.",
        )
    typer.confirm(f"Permanently delete {', '.join(names)}?", abort=True, err=True)


@command(
    app,
    "open",
    panel=FIND,
    examples=["darkroom open", "darkroom open img_…", "darkroom open batch_…"],
)
def open_(
    cli: Cli,
    what: Annotated[
        str,
        typer.Argument(
            metavar="[playground|docs|ID]",
            help="img_…, job_… or upl_…: an image, whose link works for a few minutes. batch_…: "
            "its first images on one sheet.",
            autocompletion=lambda: ["playground", "docs"],
        ),
    ] = "playground",
    print_only: Annotated[bool, typer.Option("--print", help="Only print the URL.")] = False,
) -> None:
    """Open the playground, the API's documentation, or images in the browser; print the URL."""
    url = _url_of(cli, what)
    opened = not print_only and not cli.output.as_json and _open_in_browser(url)
    notes = ["[dim]There is no browser here; open the URL on a machine that has one.[/]"]
    cli.output.outcome({"url": url}, *([] if opened or print_only else notes), text=url)


def _url_of(cli: Cli, what: str) -> str:
    if what == "playground":
        return _playground_url(cli.client.url)
    if what == "docs":
        return f"{cli.client.url}/docs"
    if what.startswith("img_"):
        return cli.client.images.get(what).url
    if what.startswith("job_"):
        for image in cli.client.jobs.get(what).images:
            return image.url
        raise CliError(f"{what} has no image yet.", ExitCode.NOT_FOUND)
    if what.startswith("upl_"):
        return cli.client.uploads.get(what).url
    if what.startswith("batch_"):
        return _contact_sheet(cli, what)
    raise CliError(
        f"{what!r} is not playground, docs, or the ID of an image, job, batch or upload.",
        ExitCode.USAGE,
    )


def _contact_sheet(cli: Cli, batch: str) -> str:
    """It needs the key, which a browser lacks: a file for it."""
    import tempfile

    sheet = cli.client.batches.contact_sheet(batch)
    with tempfile.NamedTemporaryFile(prefix=f"{batch}-", suffix=".webp", delete=False) as file:
        file.write(sheet)
    return Path(file.name).as_uri()


def _playground_url(api_url: str) -> str:
    """On the API's machine, at the port that `make run` uses."""
    from urllib.parse import urlsplit

    host = urlsplit(api_url).hostname or "127.0.0.1"
    port = os.environ.get("DARKROOM_PLAYGROUND_PORT", _DEFAULT_PLAYGROUND_PORT)
    return f"http://{f'[{host}]' if ':' in host else host}:{port}"


def _open_in_browser(url: str) -> bool:
    import webbrowser

    # Without a display, `webbrowser` falls back to text browsers, which take over the terminal.
    has_display = (
        os.name == "nt"
        or os.uname().sysname == "Darwin"
        or any(os.environ.get(name) for name in ("DISPLAY", "WAYLAND_DISPLAY", "BROWSER"))
    )
    return has_display and webbrowser.open(url)
