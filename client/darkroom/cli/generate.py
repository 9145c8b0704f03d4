"""`darkroom generate`: from a prompt to images in a folder."""

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from darkroom.cli.command import GENERATE, Cli, command
from darkroom.cli.failures import CliError, ExitCode
from darkroom.cli.jobs import print_submitted, settings_facts, warn, watch_job
from darkroom.cli.options import (
    Detach,
    Model,
    Out,
    PreviewOption,
    Scheduler,
    Session,
    Timeout,
    check_writable,
    complete_lora,
    given,
    lora_of,
    pairs,
)
from darkroom.cli.output import ago
from darkroom.cli.previews import PreviewMode
from darkroom.cli.progress import wants_previews
from darkroom.encoding import REFERENCES
from darkroom.types import JobDryRun

app = typer.Typer()

_ALPHA = "alpha"
_BORDERS = ("left", "right", "top", "bottom")
_CONTROL: dict[str, Callable[[str], Any]] = {
    **dict.fromkeys(("name", "image", "preprocess"), str),
    **dict.fromkeys(("scale", "start", "end"), float),
    **dict.fromkeys(("low", "high"), int),
}
"""What `--control` takes, and how it is read."""


@command(
    app,
    "generate",
    panel=GENERATE,
    examples=[
        'darkroom generate "purple mountains at sunset, a lake" --seed 2 --n 4 --out images',
        'darkroom generate "the same in winter" --init photo.png --strength 0.6',
        'darkroom generate "a lighthouse" --init photo.png --mask mask.png',
    ],
)
def generate(
    cli: Cli,
    prompt: Annotated[str, typer.Argument(metavar="PROMPT", help="What the image shows.")],
    *,
    negative: Annotated[
        str | None, typer.Option(metavar="TEXT", help="What the image must not show.")
    ] = None,
    seed: Annotated[
        int | None, typer.Option(min=0, help="Seed of the first image; the next gets seed + 1, …")
    ] = None,
    count: Annotated[
        int | None, typer.Option("--n", "--num-images", "-n", min=1, help="Number of images.")
    ] = None,
    width: Annotated[int | None, typer.Option(help="In pixels, a multiple of 8.")] = None,
    height: Annotated[int | None, typer.Option(help="In pixels, a multiple of 8.")] = None,
    steps: Annotated[int | None, typer.Option(help="Number of denoising steps.")] = None,
    guidance: Annotated[float | None, typer.Option(help="Guidance scale.")] = None,
    true_cfg: Annotated[
        float | None,
        typer.Option(help="FLUX, Qwen-Image: scale of guidance by a second call; 1 is off."),
    ] = None,
    scheduler: Scheduler = None,
    model: Model = None,
    init: Annotated[
        str | None,
        typer.Option(metavar="FILE|ID", help="Start from an image: a file, img_…, upl_… or a URL."),
    ] = None,
    mask: Annotated[
        str | None,
        typer.Option(
            metavar="FILE|ID",
            help="With --init: repaint what is white in this image; `alpha`: where the initial "
            "image is transparent.",
        ),
    ] = None,
    mask_fill: Annotated[
        bool,
        typer.Option(
            "--mask-fill", help="Begin with the colors around the mask, not what is in it."
        ),
    ] = False,
    mask_blur: Annotated[
        int | None, typer.Option(help="Width of the blend at the mask's edge, in pixels.")
    ] = None,
    mask_crop: Annotated[
        int | None,
        typer.Option(
            metavar="PIXELS",
            help="Make only the region around the mask, at full size, with this margin.",
        ),
    ] = None,
    expand: Annotated[
        str | None,
        typer.Option(
            metavar="L,R,T,B",
            help="With --init: paint on beyond its left, right, top and bottom edge, in pixels.",
        ),
    ] = None,
    strength: Annotated[
        float | None,
        typer.Option(help="With --init: how much to change the image, up to 1."),
    ] = None,
    resize: Annotated[
        Literal["fill", "fit", "stretch"] | None,
        typer.Option(
            help="With --init, if --width and --height have another shape: crop the image (fill, "
            "the default), show all of it (fit), or stretch it. Without a size, the result gets "
            "the image's shape."
        ),
    ] = None,
    lora: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME[:SCALE]",
            help="A LoRA of `darkroom loras`, and how strongly it acts (-4 to 4, default 1). "
            "Repeatable, up to 4.",
            autocompletion=complete_lora,
        ),
    ] = None,
    control: Annotated[
        list[str] | None,
        typer.Option(
            metavar="name=NAME,image=FILE|ID",
            help="A ControlNet, and the image that it sees; also scale (0 to 2), start and end (0 "
            "to 1), preprocess=canny, low and high. Repeatable, up to 2.",
        ),
    ] = None,
    reference: Annotated[
        list[str] | None,
        typer.Option(
            metavar="FILE|ID[:SCALE]",
            help="An image that the model looks at, and how much it counts (0 to 2, default 0.6). "
            "Repeatable, up to 2.",
        ),
    ] = None,
    weighted: Annotated[
        bool,
        typer.Option("--weighted", help=r"Read (word:1.3), \[word] and BREAK as weights."),
    ] = False,
    long_prompt: Annotated[
        bool, typer.Option("--long-prompt", help="SD, SDXL: read prompts beyond 75 tokens, too.")
    ] = False,
    hires: Annotated[
        float | None,
        typer.Option(
            metavar="SCALE",
            help="Make the image larger in a second pass, up to 4 times.",
        ),
    ] = None,
    upscaler: Annotated[
        Literal["latent", "lanczos"] | None,
        typer.Option(help="With --hires: interpolate the latents (the default) or the pixels."),
    ] = None,
    hires_strength: Annotated[
        float | None,
        typer.Option(help="With --hires: how much the second pass changes, up to 1 (default 0.7)."),
    ] = None,
    hires_steps: Annotated[
        int | None, typer.Option(help="With --hires: steps of the second pass.")
    ] = None,
    session: Session = None,
    metadata: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME=VALUE", help="Stored with the job. Repeatable."),
    ] = None,
    format_name: Annotated[
        Literal["png", "webp", "jpeg"] | None, typer.Option("--format", help="File format.")
    ] = None,
    quality: Annotated[
        int | None,
        typer.Option(help="Of --format jpeg (default 95) and webp (default: lossless), 1 to 100."),
    ] = None,
    out: Out = Path(),
    preview: PreviewOption = PreviewMode.AUTO,
    timeout: Timeout = None,
    detach: Detach = False,
    dry_run: Annotated[
        bool,
        typer.Option("--dry-run", help="Validate and estimate the job, without submitting it."),
    ] = False,
) -> None:
    """Generate images from a prompt, and save them.

    Settings default to the model's; without --seed a random one is drawn. Stdout gets the names of
    the files, stderr the progress.
    """
    second_pass = _second_pass(hires, upscaler, hires_strength, hires_steps)
    options = given(
        negative_prompt=negative,
        seed=seed,
        num_images=count,
        width=width,
        height=height,
        steps=steps,
        guidance_scale=guidance,
        true_cfg_scale=true_cfg,
        scheduler=scheduler,
        model=model,
        init_image=_initial_image(init, "--init") if init else None,
        mask_image=_initial_image(mask, "--mask") if mask and mask != _ALPHA else None,
        mask_from_alpha=True if mask == _ALPHA else None,
        masked_content="fill" if mask_fill else None,
        mask_blur=mask_blur,
        padding_mask_crop=mask_crop,
        expand=_borders(expand) if expand else None,
        strength=strength,
        resize_mode=resize,
        loras=[lora_of(text) for text in lora] if lora else None,
        controls=[_control(text) for text in control] if control else None,
        references=[_reference(text) for text in reference] if reference else None,
        prompt_syntax="weighted" if weighted else None,
        long_prompt=True if long_prompt else None,
        hires=second_pass,
        session_id=session,
        metadata=pairs(metadata) if metadata else None,
        output_format=format_name,
        output_quality=quality,
        previews=True if not detach and wants_previews(cli.output, preview) else None,
    )
    if dry_run:
        _print_dry_run(cli, cli.client.jobs.dry_run(prompt, **options))
        return
    if not detach:
        check_writable(out)
    handle = cli.client.jobs.submit(prompt, **options)
    if detach:
        print_submitted(cli, handle)
        return
    watch_job(cli, handle, out, preview, timeout)


def _second_pass(
    scale: float | None, upscaler: str | None, strength: float | None, steps: int | None
) -> dict[str, Any] | None:
    """What `--hires` and its options say.

    Raises:
        CliError: an option of the second pass is given without `--hires`.
    """
    if scale is not None:
        return given(scale=scale, upscaler=upscaler, strength=strength, steps=steps)
    options = {"--upscaler": upscaler, "--hires-strength": strength, "--hires-steps": steps}
    for name in given(**options):
        raise CliError(f"{name} needs --hires, such as --hires 2.", ExitCode.USAGE)
    return None


def _borders(text: str) -> dict[str, int]:
    """What `--expand` says.

    Raises:
        CliError: these are not four numbers.
    """
    parts = text.split(",")
    if len(parts) != len(_BORDERS) or not all(part.strip().isdecimal() for part in parts):
        raise CliError(f"--expand {text}: give four numbers, such as 0,128,0,0.", ExitCode.USAGE)
    return dict(zip(_BORDERS, map(int, parts), strict=True))


def _control(text: str) -> dict[str, Any]:
    """What `--control` says.

    Raises:
        CliError: it has no name or no image, or there is no such file.
    """
    given = dict(part.partition("=")[::2] for part in text.split(","))
    if not given.get("name") or not given.get("image") or not given.keys() <= _CONTROL.keys():
        fields = ", ".join(_CONTROL)
        raise CliError(
            f"--control takes name=NAME,image=FILE and more of: {fields}.", ExitCode.USAGE
        )
    try:
        read = {name: _CONTROL[name](value) for name, value in given.items()}
    except ValueError:
        raise CliError(f"--control {text}: not a number.", ExitCode.USAGE) from None
    return read | {"image": _initial_image(given["image"], "--control")}


def _reference(text: str) -> dict[str, Any]:
    """What `--reference` says: an image, and behind the last colon its scale, if that is a number.

    Raises:
        CliError: there is no such file.
    """
    name, _, scale = text.rpartition(":")
    try:
        named = {"image": name, "scale": float(scale)}
    except ValueError:
        named = {"image": text}
    if not name:
        named = {"image": text}
    return named | {"image": _initial_image(str(named["image"]), "--reference")}


def _initial_image(text: str, option: str) -> Any:
    """What the option names: a reference as it is, otherwise a file.

    Raises:
        CliError: it is neither.
    """
    if text.startswith(REFERENCES):
        return text
    if not Path(text).is_file():
        raise CliError(
            f"{option} {text}: no such file, and not an img_…, upl_… or URL.", ExitCode.USAGE
        )
    return Path(text)


def _print_dry_run(cli: Cli, result: JobDryRun) -> None:
    cli.output.facts(
        [
            *settings_facts(result),
            ("images", result.num_images),
            ("pixel-steps", result.cost),
            ("done", f"probably {ago(result.eta.p50)}" if result.eta else None),
        ],
        result,
    )
    if not cli.output.as_json:
        warn(cli, result)
