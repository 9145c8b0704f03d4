"""Renders the evaluation as a page and a contact sheet."""

from __future__ import annotations

import textwrap
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from string import Template

from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

_COLUMNS, _ROWS = 6, 4
_MARGIN, _CAPTION_LINES, _LINE_HEIGHT = 8, 4, 13


@dataclass(frozen=True, slots=True)
class Line:
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
class Report:
    """All that the page says."""

    pictures: Tensor
    """[n, 3, size, size] in -1 to 1."""
    texts: list[str]
    steps: int
    guidance: float
    sections: dict[str, list[Line]]


def write(report: Report, page: Path) -> None:
    """Writes the page, its contact sheet beside it under images/, and prints the numbers."""
    sheet = page.parent / "images" / "demo-contact-sheet.png"
    sheet.parent.mkdir(parents=True, exist_ok=True)
    contact_sheet(report).save(sheet, optimize=True)
    sections = "\n".join(_section(title, lines) for title, lines in report.sections.items())
    template = Template(files(__package__).joinpath("report.md").read_text())
    page.write_text(
        template.substitute(
            columns=_COLUMNS,
            rows=_ROWS,
            shown=_COLUMNS * _ROWS,
            count=len(report.texts),
            steps=report.steps,
            guidance=f"{report.guidance:g}",
            sections=sections,
        )
    )
    print(sections)


def contact_sheet(report: Report) -> Image.Image:
    """The first pictures in rows, each over its prompt."""
    size = report.pictures.shape[-1]
    width, height = size + _MARGIN, size + _MARGIN + _CAPTION_LINES * _LINE_HEIGHT
    sheet = Image.new("RGB", (_COLUMNS * width + _MARGIN, _ROWS * height + _MARGIN), "white")
    pen, font = ImageDraw.Draw(sheet), ImageFont.load_default(10)
    shown = zip(report.pictures, report.texts, strict=True)
    for place, (picture, text) in zip(range(_COLUMNS * _ROWS), shown, strict=False):
        x = _MARGIN + place % _COLUMNS * width
        y = _MARGIN + place // _COLUMNS * height
        sheet.paste(to_image(picture), (x, y))
        caption = "\n".join(textwrap.wrap(text, 26)[:_CAPTION_LINES])
        pen.multiline_text((x, y + size + 2), caption, fill="black", font=font, spacing=1)
    return sheet


def to_image(picture: Tensor) -> Image.Image:
    """A picture [3, height, width] in -1 to 1 as an RGB image."""
    pixels = ((picture.clamp(-1, 1) + 1) * 127.5).round().byte().permute(1, 2, 0)
    return Image.fromarray(pixels.numpy())


def _section(title: str, lines: list[Line]) -> str:
    rows = [f"| {line.what} | {_number(line.value)} | {_goal(line)} |" for line in lines]
    return "\n".join([f"## {title}", "| what | measured | goal |", "|---|---|---|", *rows, ""])


def _number(value: float) -> str:
    return f"{value:.1e}" if 0 < value < 0.0005 else f"{value:.3f}"


def _goal(line: Line) -> str:
    if line.goal is None:
        return ""
    sign = "≤" if line.at_most else "≥"
    return f"{sign} {line.goal:g}: {'met' if line.holds else '**missed**'}"
