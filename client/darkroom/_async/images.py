"""Pictures: their files, receipts, stars, and what is like them."""

import hashlib
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self, Unpack

from darkroom import wire
from darkroom._async.concurrency import in_thread
from darkroom._async.pages import AsyncPages
from darkroom._async.transport import AsyncTransport, Request
from darkroom.decoding import decode
from darkroom.errors import (
    ApiError,
    DamagedDownload,
    NoAnswer,
    NotFound,
    StillRunning,
    UnexpectedAnswer,
)
from darkroom.types.gallery import Hit
from darkroom.types.images import Deleted, Image, Inspection
from darkroom.types.jobs import Job, Reproduction
from darkroom.types.requests import FileSource, SearchFilters

if TYPE_CHECKING:
    from darkroom.wire import Identified

_LONGEST_WAIT = 60
"""Seconds for which the service holds an answer at most."""
_STORAGE_PATIENCE = 1.0
"""Seconds; after that the API is asked for the file instead."""
_Bytes = bytes


class AsyncPicture(Image):
    """A picture with its methods: an `Image` that knows the client which got it."""

    _images: "AsyncImages"

    @classmethod
    def of(cls, images: "AsyncImages", image: Image, job: Job | None = None) -> Self:
        """The same picture; of the job that made it come the fields that it has no copy of."""
        facts = {**image.raw}
        if job is not None:
            known = {
                "job_id": job.id,
                "session_id": job.session_id,
                "model": job.model,
                "prompt": job.prompt,
                "negative_prompt": job.negative_prompt,
                "created_at": job.raw.get("finished_at"),
            }
            facts = {**known, **facts}
        picture = decode(cls, facts)
        object.__setattr__(picture, "_images", images)
        return picture

    async def save(self, path: str | Path = ".") -> Path:
        """Write the file; into a folder (what has no extension is one) under its own name."""
        return await self._images.save(self, path)

    async def receipt(self) -> dict[str, Any]:
        """How it was made: enough to make it again."""
        return await self._images.receipt(self)

    async def reproduce(self, timeout: float | None = None) -> Reproduction:
        """Make it again and compare."""
        return await self._images.reproduce(self, timeout=timeout)

    async def star(self) -> "AsyncPicture":
        """Mark it as one to keep."""
        return await self._images.star(self)

    async def unstar(self) -> "AsyncPicture":
        """Take its star away."""
        return await self._images.unstar(self)

    async def delete(self) -> Deleted:
        """Delete it for good."""
        return await self._images.delete(self)

    def similar(self, **filters: Unpack[SearchFilters]) -> AsyncPages[Hit]:
        """Pictures like this one, best first."""
        return self._images.similar(self, **filters)

    async def thumbnail(self) -> _Bytes:
        """A small WebP."""
        return await self._images.thumbnail(self)

    async def bytes(self) -> _Bytes:
        """The file."""
        return await self._images.download(self)


class AsyncImages:
    """`client.images`. Wherever a picture is asked for, its id does as well."""

    def __init__(self, transport: AsyncTransport) -> None:
        self._transport = transport

    async def get(self, image: "str | Identified") -> AsyncPicture:
        """A picture's facts, with fresh URLs."""
        return await self._picture(Request("GET", _path(image)))

    def bind(self, image: Image, job: Job | None = None) -> AsyncPicture:
        """A picture that came inside of something else (a hit, a job), with its methods."""
        return AsyncPicture.of(self, image, job)

    async def download(
        self, image: str | Image, *, through_api: bool = False, attachment: bool = False
    ) -> _Bytes:
        """The file.

        It is read from object storage, by a fresh URL if the one at hand has expired, and through
        the API where storage cannot be reached from here.

        Args:
            image: the picture or its id.
            through_api: do not even try object storage.
            attachment: only with `through_api`: have it sent as a browser's download.

        Raises:
            DamagedDownload: what came is not what is on record.
        """
        known = image if isinstance(image, Image) else await self.get(image)
        data = None if through_api else await self._from_storage(known)
        if data is None:
            fields = {"proxy": True, "download": attachment or None}
            asked = Request("GET", f"{_path(known)}/content", wire.query(fields))
            data = (await self._transport.send(asked)).content
        if hashlib.sha256(data).hexdigest() != known.sha256:
            raise DamagedDownload(f"{known.id}: {len(data)} bytes came, of another SHA-256")
        return data

    async def save(self, image: str | Image, path: str | Path = ".") -> Path:
        """Write the file, whole or not at all. Returns where it is.

        Args:
            image: the picture or its id.
            path: a file's name; or a folder, where it gets its own name. What has no extension
                is a folder, and folders are made.
        """
        known = image if isinstance(image, Image) else await self.get(image)
        data = await self.download(known)
        target = await in_thread(wire.file_in, Path(path), known.file_name)
        return await in_thread(wire.write_file, target, data)

    async def thumbnail(self, image: "str | Identified") -> _Bytes:
        """A small WebP, through the API."""
        asked = Request("GET", f"{_path(image)}/thumbnail", wire.query({"proxy": True}))
        return (await self._transport.send(asked)).content

    async def receipt(self, image: "str | Identified") -> dict[str, Any]:
        """How the picture was made, as it is in the file's `darkroom` chunk."""
        answer: dict[str, Any] = await self._transport.json(
            Request("GET", f"{_path(image)}/receipt")
        )
        return answer

    async def reproduce(
        self,
        image: "str | Identified",
        *,
        job: "str | Identified | None" = None,
        timeout: float | None = None,
    ) -> Reproduction:
        """Make the picture again and compare; waits until that is done.

        Args:
            image: the picture or its id.
            job: go on with this job, which was begun for it before.
            timeout: seconds; None: as long as it takes.

        Raises:
            StillRunning: `timeout` seconds were over first. Ask again: it goes on.
            NotReproducible: the model or the initial image is not there any more.
        """
        deadline = None if timeout is None else time.monotonic() + timeout
        going_on = None if job is None else wire.id_of(job)
        while True:
            left = _LONGEST_WAIT if deadline is None else deadline - time.monotonic()
            wait = max(0, min(_LONGEST_WAIT, round(left)))
            asked = Request(
                "POST",
                f"{_path(image)}/reproduce",
                wire.query({"job": going_on}),
                headers={"Prefer": f"wait={wait}"},
                repeatable=True,  # no second job is begun while one is unfinished
                waits=wait,
                patience=self._transport.configuration.patience,
            )
            result = decode(Reproduction, await self._transport.json(asked))
            if result.verdict is not None:
                return result
            if deadline is not None and time.monotonic() >= deadline:
                raise StillRunning(result.job)
            going_on = result.job.id

    async def inspect(self, file: FileSource) -> Inspection:
        """What a picture made by Darkroom says of itself; nothing of it is kept."""
        sent = await in_thread(wire.read_file, file)
        asked = Request("POST", "/v1/images/inspect", files={"file": sent}, repeatable=True)
        return decode(Inspection, await self._transport.json(asked))

    async def star(self, image: "str | Identified") -> AsyncPicture:
        """Mark as one to keep; searches can ask for such, recommendations prefer them."""
        return await self._picture(Request("PUT", f"{_path(image)}/star"))

    async def unstar(self, image: "str | Identified") -> AsyncPicture:
        """Take the star away; the picture stays."""
        return await self._picture(Request("DELETE", f"{_path(image)}/star"))

    async def delete(self, image: "str | Identified") -> Deleted:
        """Delete for good: row, files, and the prompt's embedding if nothing else needs it."""
        return decode(Deleted, await self._transport.json(Request("DELETE", _path(image))))

    def similar(
        self,
        image: str | Image | FileSource,
        *,
        page_size: int | None = None,
        after: str | None = None,
        **filters: Unpack[SearchFilters],
    ) -> AsyncPages[Hit]:
        """Pictures like this one, best first, without itself.

        By pixels where the service has a model that sees them, else by what prompts mean.

        Args:
            image: a picture, its id, or a file; where prompts are compared, one that Darkroom made.
            page_size: entries to fetch at a time, 1 to 100.
            after: where to go on: the `next_cursor` of a page.
            filters: see `SearchFilters`.
        """
        query = wire.query({**filters, "limit": page_size})
        if isinstance(image, str | Image):
            body = {"image_id": wire.id_of(image)}
            asked = Request("POST", "/v1/search", query, json=body, repeatable=True)
        else:
            sent = wire.read_file(image)
            asked = Request("POST", "/v1/search", query, files={"file": sent}, repeatable=True)
        return AsyncPages(self._transport, asked, Hit, after)

    async def _picture(self, asked: Request) -> AsyncPicture:
        return self.bind(decode(Image, await self._transport.json(asked)))

    async def _from_storage(self, image: Image) -> _Bytes | None:
        """The file from object storage; None where that cannot be had."""
        try:
            return await self._read(image.url)
        except NoAnswer:
            return None  # storage has an address that is none from here
        except (ApiError, UnexpectedAnswer):
            fresh = await self.get(image)  # the URL has expired
        try:
            return await self._read(fresh.url)
        except NotFound:
            return None  # let the API say what is missing
        except (NoAnswer, ApiError):
            return None

    async def _read(self, url: str) -> _Bytes:
        asked = Request("GET", url, patience=_STORAGE_PATIENCE)
        return (await self._transport.send(asked)).content


def _path(image: "str | Identified") -> str:
    return f"/v1/images/{wire.segment(image)}"
