"""A batch's images as one file: a ZIP, or a sheet of thumbnails with their names."""

import asyncio
import io
import re
import unicodedata
import zipfile
from collections import deque
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import UUID

from PIL import Image as Images
from PIL import ImageDraw, ImageFont, ImageOps

from api.context import Resources
from api.core.fairness import on_thread
from api.core.principal import Principal
from shared.batches import queries
from shared.batches.models import Batch
from shared.core.storage import EXTENSIONS, ObjectMissing
from shared.images import queries as image_queries
from shared.images.models import Image

# --- A ZIP: made while it is sent, nothing is kept in between --------------------------------

_JOBS_AT_ONCE = 100
_READ_AHEAD = 4
"""Images in memory at a time, of a few MB each."""
_UNSAFE = re.compile(r"[^\w.-]+")
_MISSING = "MISSING.txt"


@dataclass(frozen=True)
class _Entry:
    """One image of the archive."""

    name: str
    s3_key: str
    made_at: datetime


async def stream_archive(
    resources: Resources, principal: Principal, batch: Batch
) -> AsyncIterator[bytes]:
    """The ZIP, entry by entry, uncompressed: images are compressed already.

    Images whose object is gone are named in an entry of their own.

    Raises:
        StorageUnavailable: S3 is unavailable; the connection breaks off, so that no client takes
            the part for the whole.
    """
    sink = _Sink()
    missing: list[str] = []
    with zipfile.ZipFile(sink, "w", zipfile.ZIP_STORED) as archive:
        async for entry, body in _bodies(resources, _entries(resources, principal, batch)):
            if body is None:
                missing.append(entry.name)
                continue
            yield _add(archive, sink, entry.name, entry.made_at, body)
        if missing:
            text = "\n".join(missing) + "\n"
            yield _add(archive, sink, _MISSING, batch.created_at, text.encode())
    yield sink.take()


class _Sink(io.RawIOBase):
    """Where `zipfile` writes to; it cannot seek, so every entry is written in one go."""

    def __init__(self) -> None:
        super().__init__()
        self._parts: list[bytes] = []

    def writable(self) -> bool:
        return True

    def write(self, data: Any, /) -> int:
        self._parts.append(bytes(data))
        return len(data)

    def take(self) -> bytes:
        """What was written since the last call."""
        written = b"".join(self._parts)
        self._parts.clear()
        return written


def _add(archive: zipfile.ZipFile, sink: _Sink, name: str, at: datetime, body: bytes) -> bytes:
    moment = (at.year, at.month, at.day, at.hour, at.minute, at.second)
    archive.writestr(zipfile.ZipInfo(name, moment), body)
    return sink.take()


async def _entries(
    resources: Resources, principal: Principal, batch: Batch
) -> AsyncIterator[_Entry]:
    """The images made so far, in the order of the lines."""
    after: UUID | None = None
    taken: set[str] = set()
    while True:
        async with resources.tenant_transaction(principal) as session:
            statement = queries.list_items(batch, _JOBS_AT_ONCE, after=after, states=("succeeded",))
            jobs = (await session.scalars(statement)).all()
            ids = [job.id for job in jobs]
            images = (await session.scalars(image_queries.list_images_of_jobs(ids))).all()
        names = {job.id: job.custom_id or "" for job in jobs}
        seen: set[tuple[UUID, int]] = set()
        for image in images:
            is_repeated = (image.job_id, image.seed) in seen
            seen.add((image.job_id, image.seed))
            name = entry_name(names[image.job_id], image, is_repeated=is_repeated)
            if _folded(name) in taken:
                name = entry_name(names[image.job_id], image, is_repeated=True)
            taken.add(_folded(name))
            yield _Entry(name, image.s3_key, image.created_at)
        if len(jobs) < _JOBS_AT_ONCE:
            return
        after = jobs[-1].id


def entry_name(custom_id: str, image: Image, *, is_repeated: bool = False) -> str:
    """`custom_id_seed.png`, safe on every file system.

    A name that had to be changed for that, that another one differs from only in case, and a seed
    that its job has twice, get a bit of the image's id.
    """
    safe = _UNSAFE.sub("_", custom_id).strip(".")
    suffix = f"_{image.id.hex[-8:]}" if safe != custom_id or is_repeated else ""
    return f"{safe}_{image.seed}{suffix}.{EXTENSIONS[image.content_type]}"


def _folded(name: str) -> str:
    """The same for names that macOS and Windows take for one."""
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", name).casefold())


async def _bodies(
    resources: Resources, entries: AsyncIterator[_Entry]
) -> AsyncIterator[tuple[_Entry, bytes | None]]:
    """Each image's bytes, a few read ahead; None where the object is gone."""
    reading: deque[tuple[_Entry, asyncio.Task[bytes | None]]] = deque()
    try:
        async for entry in entries:
            read = resources.on_storage(_read, resources, entry.s3_key)
            reading.append((entry, asyncio.create_task(read)))
            if len(reading) >= _READ_AHEAD:
                first, task = reading.popleft()
                yield first, await task
        while reading:
            first, task = reading.popleft()
            yield first, await task
    finally:
        for _, task in reading:
            task.cancel()


def _read(resources: Resources, s3_key: str) -> bytes | None:
    """None: the object is gone."""
    try:
        return resources.storage.get(s3_key).body
    except ObjectMissing:
        return None


# --- A sheet ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class Tile:
    """One image of the sheet."""

    title: str
    subtitle: str
    s3_key: str


TILE = 160
"""Pixels of a tile's image, each way."""

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
    sheet = Images.new("RGB", (columns * width + _GAP, rows * height + _GAP), _PAPER)
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


def _paste(sheet: Images.Image, body: bytes, left: int, top: int) -> None:
    """The thumbnail, whole and centred."""
    with Images.open(io.BytesIO(body), formats=("WEBP",)) as opened:
        image = ImageOps.contain(opened.convert("RGB"), (TILE, TILE))
    sheet.paste(image, (left + (TILE - image.width) // 2, top + (TILE - image.height) // 2))


def _fitting(text: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont) -> str:
    if font.getlength(text) <= TILE:
        return text
    while text and font.getlength(text + "…") > TILE:
        text = text[:-1]
    return text + "…"


_READ_AT_ONCE = 8
_one_sheet = asyncio.Semaphore(1)


async def draw_contact_sheet(
    resources: Resources, principal: Principal, batch: Batch, *, limit: int, columns: int
) -> bytes | None:
    """The first `limit` images in the order of the lines, as WebP; None while there is none.

    Raises:
        StorageUnavailable: S3 is unavailable.
    """
    tiles = await _tiles(resources, principal, batch, limit)
    if not tiles:
        return None
    # One sheet at a time: hundreds of open thumbnails are some ten MB.
    async with _one_sheet:
        bodies: list[bytes | None] = []
        for start in range(0, len(tiles), _READ_AT_ONCE):
            some = tiles[start : start + _READ_AT_ONCE]
            reads = (resources.on_storage(_read, resources, tile.s3_key) for tile in some)
            bodies += await asyncio.gather(*reads)
        return await on_thread(draw, tiles, bodies, columns)


async def _tiles(
    resources: Resources, principal: Principal, batch: Batch, limit: int
) -> list[Tile]:
    async with resources.tenant_transaction(principal) as session:
        statement = queries.list_items(batch, limit, states=("succeeded",))
        jobs = {job.id: job for job in (await session.scalars(statement)).all()}
        images = (await session.scalars(image_queries.list_images_of_jobs(jobs))).all()
    return [
        Tile(jobs[image.job_id].custom_id or "", f"seed {image.seed}", image.thumbnail_s3_key)
        for image in images[:limit]
    ]
