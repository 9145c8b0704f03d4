"""A batch at a glance: its images' thumbnails with their names, as one WebP."""

import asyncio
import io
from collections.abc import Sequence
from dataclasses import dataclass

from PIL import Image as Pictures
from PIL import ImageDraw, ImageFont, ImageOps

from api.context import Resources
from api.core.fairness import on_thread
from api.core.principal import Principal
from shared.batches import queries
from shared.batches.models import Batch
from shared.core.storage import ObjectMissing
from shared.images import queries as image_queries


@dataclass(frozen=True)
class Tile:
    """One picture of the sheet."""

    title: str
    subtitle: str
    s3_key: str


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


_AT_ONCE = 8


_turn = asyncio.Semaphore(1)


async def draw_contact_sheet(
    resources: Resources, principal: Principal, batch: Batch, *, limit: int, columns: int
) -> bytes | None:
    """The first `limit` pictures in the order of the lines, as WebP; None while there is none.

    Raises:
        StorageUnavailable: S3 is away.
    """
    tiles = await _tiles(resources, principal, batch, limit)
    if not tiles:
        return None
    # One sheet at a time: hundreds of open thumbnails are some ten MB.
    async with _turn:
        bodies: list[bytes | None] = []
        for start in range(0, len(tiles), _AT_ONCE):
            some = tiles[start : start + _AT_ONCE]
            reads = (resources.on_storage(_read, resources, tile) for tile in some)
            bodies += await asyncio.gather(*reads)
        # Imported late: most API processes never draw, and Pillow takes 4 MB.
        pass

        return await on_thread(draw, tiles, bodies, columns)


async def _tiles(
    resources: Resources, principal: Principal, batch: Batch, limit: int
) -> list[Tile]:
    async with resources.tenant_transaction(principal) as session:
        asked = queries.list_items(batch, limit, states=("succeeded",))
        jobs = {job.id: job for job in (await session.scalars(asked)).all()}
        images = (await session.scalars(image_queries.list_images_of_jobs(jobs))).all()
    return [
        Tile(jobs[image.job_id].custom_id or "", f"seed {image.seed}", image.thumbnail_s3_key)
        for image in images[:limit]
    ]


def _read(resources: Resources, tile: Tile) -> bytes | None:
    try:
        return resources.storage.get(tile.s3_key).body
    except ObjectMissing:
        return None
