"""All pictures of a batch as one ZIP that is made while it is sent: nothing is kept in between."""

import asyncio
import io
import re
import unicodedata
import zipfile
from collections import deque
from collections.abc import AsyncIterator
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import UUID

from api.context import Resources
from api.core.principal import Principal
from shared.batches import queries
from shared.batches.models import Batch
from shared.core.storage import EXTENSIONS, ObjectMissing
from shared.images import queries as image_queries
from shared.images.models import Image

_JOBS_AT_ONCE = 100
_READ_AHEAD = 4
"""Pictures in memory at a time, of a few MB each."""
_UNSAFE = re.compile(r"[^\w.-]+")
_MISSING = "MISSING.txt"


@dataclass(frozen=True)
class Entry:
    """One picture of the archive."""

    name: str
    s3_key: str
    made_at: datetime


async def stream_archive(
    resources: Resources, principal: Principal, batch: Batch
) -> AsyncIterator[bytes]:
    """The ZIP, entry by entry, uncompressed: pictures are compressed already.

    Pictures whose object is gone are named in an entry of their own.

    Raises:
        StorageUnavailable: S3 is away; the connection breaks off, so that no client takes the
            part for the whole.
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
        taken = b"".join(self._parts)
        self._parts.clear()
        return taken


def _add(archive: zipfile.ZipFile, sink: _Sink, name: str, at: datetime, body: bytes) -> bytes:
    moment = (at.year, at.month, at.day, at.hour, at.minute, at.second)
    archive.writestr(zipfile.ZipInfo(name, moment), body)
    return sink.take()


async def _entries(
    resources: Resources, principal: Principal, batch: Batch
) -> AsyncIterator[Entry]:
    """The pictures made so far, in the order of the lines."""
    after: UUID | None = None
    taken: set[str] = set()
    while True:
        async with resources.tenant_transaction(principal) as session:
            asked = queries.list_items(batch, _JOBS_AT_ONCE, after=after, states=("succeeded",))
            jobs = (await session.scalars(asked)).all()
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
            yield Entry(name, image.s3_key, image.created_at)
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
    resources: Resources, entries: AsyncIterator[Entry]
) -> AsyncIterator[tuple[Entry, bytes | None]]:
    """Each picture's bytes, a few read ahead; None where the object is gone."""
    reading: deque[tuple[Entry, asyncio.Task[bytes | None]]] = deque()
    try:
        async for entry in entries:
            read = resources.on_storage(_read, resources, entry)
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


def _read(resources: Resources, entry: Entry) -> bytes | None:
    try:
        return resources.storage.get(entry.s3_key).body
    except ObjectMissing:
        return None
