"""`darkroom reproduce`, `inspect`, `star`, `save`: one picture, and how it was made."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from darkroom.cli.command import Cli, command
from darkroom.cli.exits import ExitCode
from darkroom.cli.options import ImageId, Out, PreviewOption, Timeout
from darkroom.cli.pictures import Preview, choose, show

if TYPE_CHECKING:
    from darkroom.types.images import Inspection

_VERDICTS = {"identical": "green", "equivalent": "yellow", "different": "red"}


def reproduce(cli: Cli, image: ImageId, timeout: Timeout = None) -> None:
    """Make a picture again from its receipt, and compare.

    identical: every pixel is equal. equivalent: no channel of a pixel differs by more than 8 of
    255. different: some do, and the exit code is 10.
    """
    cli.if_interrupted(
        f"It goes on; ask again with [bold]darkroom reproduce {image}[/], "
        "and no second job is begun."
    )
    with cli.output.busy(f"making {image} again"):
        result = cli.client.images.reproduce(image, timeout=timeout)
    if cli.output.as_json or not cli.output.out.is_terminal:
        cli.output.facts(
            [
                ("verdict", result.verdict),
                ("largest difference", result.max_pixel_difference),
                ("reason", result.reason),
                ("again", result.image.id if result.image else None),
            ],
            result,
        )
    else:
        colour = _VERDICTS.get(result.verdict or "", "bold")
        cli.output.out.print(f"[bold {colour}]{result.verdict}[/]  {result.reason}")
        if result.image:
            cli.output.note(f"[dim]The new picture is {result.image.id}.[/]")
    if result.verdict == "different":
        raise typer.Exit(ExitCode.FINDING)


def inspect(
    cli: Cli,
    file: Annotated[
        Path,
        typer.Argument(
            metavar="FILE", exists=True, dir_okay=False, readable=True, help="A picture file."
        ),
    ],
) -> None:
    """Read the receipt in a file: how Darkroom made it, and whether it is one of yours."""
    found = cli.client.images.inspect(file)
    cli.output.facts(_told(found), found)
    if not cli.output.as_json:
        for note in found.notes:
            cli.output.warning(note)


def _told(found: "Inspection") -> list[tuple[str, object]]:
    receipt = found.receipt
    model: Any = receipt.get("model") or {}
    scheduler: Any = receipt.get("scheduler") or {}
    return [
        ("image", found.image.id if found.image else "not one of yours: no such file is on record"),
        ("prompt", receipt.get("prompt")),
        ("negative prompt", receipt.get("negative_prompt") or None),
        ("seed", receipt.get("seed")),
        ("model", model.get("name") if isinstance(model, dict) else model),
        ("size", f"{receipt.get('width')}×{receipt.get('height')}"),
        ("steps", receipt.get("steps")),
        ("guidance", receipt.get("guidance_scale")),
        ("scheduler", scheduler.get("name") if isinstance(scheduler, dict) else scheduler),
        ("strength", receipt.get("strength")),
        ("resize", receipt.get("resize_mode")),
        ("device", receipt.get("device")),
        ("to make it again", f"darkroom jobs submit '{_body(found)}'"),
    ]


def _body(found: "Inspection") -> str:
    return json.dumps(found.job, ensure_ascii=False).replace("'", "'\\''")


def star(
    cli: Cli,
    images: Annotated[list[str], typer.Argument(metavar="IMAGE...", help="img_…")],
    remove: Annotated[bool, typer.Option("--remove", help="Take the star away.")] = False,
) -> None:
    """Star pictures: searches can ask for such, and recommendations prefer their prompts."""
    change = cli.client.images.unstar if remove else cli.client.images.star
    changed = [change(image) for image in images]
    if cli.output.as_json:
        cli.output.document(changed)
        return
    for image in changed:
        cli.output.note(f"{'[yellow]★[/]' if image.starred else '☆'} {image.id}")


def save(
    cli: Cli,
    images: Annotated[list[str], typer.Argument(metavar="IMAGE...", help="img_…")],
    out: Out = Path(),
    preview: PreviewOption = Preview.AUTO,
) -> None:
    """Download pictures, each under its id. Their SHA-256 is checked."""
    out.mkdir(parents=True, exist_ok=True)
    way = Preview.OFF if cli.output.as_json else choose(preview, cli.output.err)
    saved = []
    for name in images:
        path = cli.client.images.save(name, out)
        saved.append({"image_id": name, "path": str(path)})
        if way is not Preview.OFF:
            show([path.read_bytes()], way, cli.output.err)
        if not cli.output.as_json:
            cli.output.text(str(path))
    if cli.output.as_json:
        cli.output.document(saved)


def register(app: typer.Typer, panel: str) -> None:
    """Add the commands to the tree, in that panel of its help."""
    command(app, "reproduce", panel=panel, examples=["darkroom reproduce img_…"])(reproduce)
    command(app, "inspect", panel=panel, examples=["darkroom inspect picture.png"])(inspect)
    command(
        app, "star", panel=panel, examples=["darkroom star img_…", "darkroom star --remove img_…"]
    )(star)
    command(app, "save", panel=panel, examples=["darkroom save img_… --out pictures"])(save)
