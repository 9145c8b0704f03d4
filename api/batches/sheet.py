"""Draw a contact sheet from thumbnails, with Pillow."""

import io
from collections.abc import Sequence

from PIL import Image as Pictures
from PIL import ImageDraw, ImageFont, ImageOps

from api.batches.tiles import Tile

TILE = 160
"""Pixels of a tile's picture, each way."""
_LABEL = 30
_GAP = 8
_PAPER = (250, 250, 248)
_INK = (60, 60, 60)
_FRAME = (222, 222, 218)


def draw(tiles: Sequence[Tile], bodies: Sequence[bytes | None], columns: int) -> bytes:
    """The sheet. A thumbnail that is gone leaves its frame empty."""
    columns = min(columns, len(tiles))
    rows = -(-len(tiles) // columns)
    width, height = TILE + _GAP, TILE + _LABEL + _GAP
    sheet = Pictures.new("RGB", (columns * width + _GAP, rows * height + _GAP), _PAPER)
    pen = ImageDraw.Draw(sheet)
    font = ImageFont.load_default(11)
    for number, (tile, body) in enumerate(zip(tiles, bodies, strict=True)):
        left = _GAP + number % columns * width
        top = _GAP + number // columns * height
        pen.rectangle((left - 1, top - 1, left + TILE, top + TILE), outline=_FRAME)
        if body is not None:
            _paste(sheet, body, left, top)
        for line, text in enumerate((tile.title, tile.subtitle)):
            pen.text((left, top + TILE + 3 + 13 * line), _fitting(text, font), _INK, font)
    buffer = io.BytesIO()
    sheet.save(buffer, "WEBP", quality=85, method=2)
    return buffer.getvalue()


def _paste(sheet: Pictures.Image, body: bytes, left: int, top: int) -> None:
    """The thumbnail, whole and centred."""
    with Pictures.open(io.BytesIO(body), formats=("WEBP",)) as opened:
        picture = ImageOps.contain(opened.convert("RGB"), (TILE, TILE))
    sheet.paste(picture, (left + (TILE - picture.width) // 2, top + (TILE - picture.height) // 2))


def _fitting(text: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont) -> str:
    if font.getlength(text) <= TILE:
        return text
    while text and font.getlength(text + "…") > TILE:
        text = text[:-1]
    return text + "…"
