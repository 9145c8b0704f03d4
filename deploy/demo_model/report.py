"""Renders the evaluation as a page and a contact sheet."""

from __future__ import annotations

import textwrap
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from string import Template

from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

COLUMNS, _ROWS = 6, 4
_MARGIN, _CAPTION_LINES, _LINE_HEIGHT = 8, 4, 13


@dataclass(frozen=True, slots=True)
class Score:
    """One measured number, and the goal it is held against, if any."""

    what: str
    value: float
    goal: float | None = None
    at_most: bool = False

    @property
    def holds(self) -> bool | None:
        """Whether the goal is met; None without one."""
        if self.goal is None:
            return None
        return self.value <= self.goal if self.at_most else self.value >= self.goal


@dataclass(frozen=True, slots=True)
class Evaluation:
    """All that the page says."""

    images: Tensor
    """[n, 3, size, size] in -1 to 1."""
    texts: list[str]
    steps: int
    guidance: float
    scores: list[Score]
    styles: list[Tensor]
    """The first images again with each LoRA, [columns, 3, size, size]."""
    traced: list[Tensor]
    """Scenes, their edges, and images without and with these, [n, 3, size, size] in -1 to 1."""


def write(evaluation: Evaluation, page: Path) -> None:
    """Writes the page, its sheets beside it under images/, and prints the numbers."""
    folder = page.parent / "images"
    folder.mkdir(parents=True, exist_ok=True)
    contact_sheet(evaluation).save(folder / "demo-contact-sheet.png", optimize=True)
    in_rows([evaluation.images, *evaluation.styles]).save(folder / "demo-styles.png", optimize=True)
    in_rows(evaluation.traced).save(folder / "demo-edges.png", optimize=True)
    table = "\n".join(
        ["| what | measured | goal |", "|---|---|---|", *map(_row, evaluation.scores)]
    )
    template = Template(files(__package__).joinpath("report.md").read_text())
    page.write_text(
        template.substitute(
            columns=COLUMNS,
            rows=_ROWS,
            shown=COLUMNS * _ROWS,
            count=len(evaluation.texts),
            steps=evaluation.steps,
            guidance=f"{evaluation.guidance:g}",
            table=table,
        )
    )
    print(table)


def contact_sheet(evaluation: Evaluation) -> Image.Image:
    """The first images in rows, each over its prompt."""
    size = evaluation.images.shape[-1]
    width, height = size + _MARGIN, size + _MARGIN + _CAPTION_LINES * _LINE_HEIGHT
    sheet = Image.new("RGB", (COLUMNS * width + _MARGIN, _ROWS * height + _MARGIN), "white")
    pen, font = ImageDraw.Draw(sheet), ImageFont.load_default(10)
    shown = zip(evaluation.images, evaluation.texts, strict=True)
    for place, (image, text) in zip(range(COLUMNS * _ROWS), shown, strict=False):
        x = _MARGIN + place % COLUMNS * width
        y = _MARGIN + place // COLUMNS * height
        sheet.paste(to_image(image), (x, y))
        caption = "\n".join(textwrap.wrap(text, 26)[:_CAPTION_LINES])
        pen.multiline_text((x, y + size + 2), caption, fill="black", font=font, spacing=1)
    return sheet


def in_rows(stacks: list[Tensor]) -> Image.Image:
    """The first images of each stack in a row, so that those of one kind lie below each other."""
    step = stacks[0].shape[-1] + _MARGIN
    sheet = Image.new("RGB", (COLUMNS * step + _MARGIN, len(stacks) * step + _MARGIN), "white")
    for row, images in enumerate(stacks):
        for column, image in enumerate(images[:COLUMNS]):
            sheet.paste(to_image(image), (_MARGIN + column * step, _MARGIN + row * step))
    return sheet


def to_image(image: Tensor) -> Image.Image:
    """An image [3, height, width] in -1 to 1 as an RGB image."""
    pixels = ((image.clamp(-1, 1) + 1) * 127.5).round().byte().permute(1, 2, 0)
    return Image.fromarray(pixels.numpy())


def _row(line: Score) -> str:
    return f"| {line.what} | {_number(line.value)} | {_goal(line)} |"


def _number(value: float) -> str:
    return f"{value:.1e}" if 0 < value < 0.0005 else f"{value:.3f}"


def _goal(line: Score) -> str:
    if line.goal is None:
        return ""
    sign = "≤" if line.at_most else "≥"
    return f"{sign} {line.goal:g}" + ("" if line.holds else ", **missed**")
