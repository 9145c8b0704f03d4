# Generated from darkroom/_async by client/make_sync.py (`make client`). Do not edit.
"""Pictures: their files, receipts, stars, and what is like them."""

import hashlib
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self, Unpack

from darkroom import wire
from darkroom._sync.concurrency import in_thread
from darkroom._sync.pages import Pages
from darkroom._sync.transport import Request, Transport
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


class Picture(Image):
    """A picture with its methods: an `Image` that knows the client which got it."""

    _images: "Images"

    @classmethod
    def of(cls, images: "Images", image: Image, job: Job | None = None) -> Self:
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

    def save(self, path: str | Path = ".") -> Path:
        """Write the file; into a folder (what has no extension is one) under its own name."""
        return self._images.save(self, path)

    def receipt(self) -> dict[str, Any]:
        """How it was made: enough to make it again."""
        return self._images.receipt(self)

    def reproduce(self, timeout: float | None = None) -> Reproduction:
        """Make it again and compare."""
        return self._images.reproduce(self, timeout=timeout)

    def star(self) -> "Picture":
        """Mark it as one to keep."""
        return self._images.star(self)

    def unstar(self) -> "Picture":
        """Take its star away."""
        return self._images.unstar(self)

    def delete(self) -> Deleted:
        """Delete it for good."""
        return self._images.delete(self)

    def similar(self, **filters: Unpack[SearchFilters]) -> Pages[Hit]:
        """Pictures like this one, best first."""
        return self._images.similar(self, **filters)

    def thumbnail(self) -> _Bytes:
        """A small WebP."""
        return self._images.thumbnail(self)

    def bytes(self) -> _Bytes:
        """The file."""
        return self._images.download(self)


class Images:
    """`client.images`. Wherever a picture is asked for, its id does as well."""

    def __init__(self, transport: Transport) -> None:
        self._transport = transport

    def get(self, image: "str | Identified") -> Picture:
        """A picture's facts, with fresh URLs."""
        return self._picture(Request("GET", _path(image)))

    def bind(self, image: Image, job: Job | None = None) -> Picture:
        """A picture that came inside of something else (a hit, a job), with its methods."""
        return Picture.of(self, image, job)

    def download(
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
        known = image if isinstance(image, Image) else self.get(image)
        data = None if through_api else self._from_storage(known)
        if data is None:
            fields = {"proxy": True, "download": attachment or None}
            asked = Request("GET", f"{_path(known)}/content", wire.query(fields))
            data = (self._transport.send(asked)).content
        if hashlib.sha256(data).hexdigest() != known.sha256:
            raise DamagedDownload(f"{known.id}: {len(data)} bytes came, of another SHA-256")
        return data

    def save(self, image: str | Image, path: str | Path = ".") -> Path:
        """Write the file, whole or not at all. Returns where it is.

        Args:
            image: the picture or its id.
            path: a file's name; or a folder, where it gets its own name. What has no extension
                is a folder, and folders are made.
        """
        known = image if isinstance(image, Image) else self.get(image)
        data = self.download(known)
        target = in_thread(wire.file_in, Path(path), known.file_name)
        return in_thread(wire.write_file, target, data)

    def thumbnail(self, image: "str | Identified") -> _Bytes:
        """A small WebP, through the API."""
        asked = Request("GET", f"{_path(image)}/thumbnail", wire.query({"proxy": True}))
        return (self._transport.send(asked)).content

    def receipt(self, image: "str | Identified") -> dict[str, Any]:
        """How the picture was made, as it is in the file's `darkroom` chunk."""
        answer: dict[str, Any] = self._transport.json(Request("GET", f"{_path(image)}/receipt"))
        return answer

    def reproduce(
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
            result = decode(Reproduction, self._transport.json(asked))
            if result.verdict is not None:
                return result
            if deadline is not None and time.monotonic() >= deadline:
                raise StillRunning(result.job)
            going_on = result.job.id

    def inspect(self, file: FileSource) -> Inspection:
        """What a picture made by Darkroom says of itself; nothing of it is kept."""
        sent = in_thread(wire.read_file, file)
        asked = Request("POST", "/v1/images/inspect", files={"file": sent}, repeatable=True)
        return decode(Inspection, self._transport.json(asked))

    def star(self, image: "str | Identified") -> Picture:
        """Mark as one to keep; searches can ask for such, recommendations prefer them."""
        return self._picture(Request("PUT", f"{_path(image)}/star"))

    def unstar(self, image: "str | Identified") -> Picture:
        """Take the star away; the picture stays."""
        return self._picture(Request("DELETE", f"{_path(image)}/star"))

    def delete(self, image: "str | Identified") -> Deleted:
        """Delete for good: row, files, and the prompt's embedding if nothing else needs it."""
        return decode(Deleted, self._transport.json(Request("DELETE", _path(image))))

    def similar(
        self,
        image: str | Image | FileSource,
        *,
        page_size: int | None = None,
        after: str | None = None,
        **filters: Unpack[SearchFilters],
    ) -> Pages[Hit]:
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
        return Pages(self._transport, asked, Hit, after)

    def _picture(self, asked: Request) -> Picture:
        return self.bind(decode(Image, self._transport.json(asked)))

    def _from_storage(self, image: Image) -> _Bytes | None:
        """The file from object storage; None where that cannot be had."""
        try:
            return self._read(image.url)
        except NoAnswer:
            return None  # storage has an address that is none from here
        except (ApiError, UnexpectedAnswer):
            fresh = self.get(image)  # the URL has expired
        try:
            return self._read(fresh.url)
        except NotFound:
            return None  # let the API say what is missing
        except (NoAnswer, ApiError):
            return None

    def _read(self, url: str) -> _Bytes:
        asked = Request("GET", url, patience=_STORAGE_PATIENCE)
        return (self._transport.send(asked)).content


def _path(image: "str | Identified") -> str:
    return f"/v1/images/{wire.segment(image)}"
