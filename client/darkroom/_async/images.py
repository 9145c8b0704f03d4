"""Images: files, receipts, stars, similar ones; initial images; sessions; prompts worth trying."""

import hashlib
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Self, Unpack

from darkroom import encoding
from darkroom._async.concurrency import in_thread, read_now
from darkroom._async.resource import AsyncPages, AsyncResource
from darkroom._async.transport import Request
from darkroom.decoding import decode
from darkroom.display import open_image, png
from darkroom.encoding import Identified
from darkroom.errors import (
    APIConnectionError,
    APIResponseValidationError,
    APIStatusError,
    ChecksumMismatch,
    NotFoundError,
    WaitTimeoutError,
)
from darkroom.types.images import (
    Deleted,
    HistoryImage,
    Hit,
    Image,
    Inspection,
    Provenance,
    Recommendation,
    Session,
    Upload,
)
from darkroom.types.jobs import Job, Reproduction
from darkroom.types.requests import FileSource, SearchFilters

if TYPE_CHECKING:
    from PIL.Image import Image as PillowImage

    from darkroom._async.jobs import AsyncJobHandle, AsyncJobs

_LONGEST_WAIT = 60
"""Seconds for which the service holds an answer, at most."""
_STORAGE_RETRY_TIMEOUT = 1.0
"""Seconds; after that the file is requested from the API instead."""
_Bytes = bytes


class AsyncImageHandle(Image, frozen=True, kw_only=True):
    """An image with its methods: an `Image` that knows the client it came from."""

    @classmethod
    def of(cls, images: "AsyncImages", image: Image, job: Job | None = None) -> Self:
        """The same image, with the fields that it lacks taken from its job."""
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
        bound = decode(cls, facts)
        bound.__dict__["_images"] = images
        return bound

    @property
    def _images(self) -> "AsyncImages":
        images: AsyncImages = self.__dict__["_images"]
        return images

    async def save(self, path: str | Path = ".") -> Path:
        """Write the file; a path without an extension is a folder, where it gets its own name."""
        return await self._images.save(self, path)

    async def receipt(self) -> dict[str, Any]:
        """How it was made: enough to make it again."""
        return await self._images.receipt(self)

    async def reproduce(self, timeout: float | None = None) -> Reproduction:
        """Make it again and compare."""
        return await self._images.reproduce(self, timeout=timeout)

    async def upscale(
        self,
        scale: float | None = None,
        method: Literal["lanczos", "latent"] | None = None,
        *,
        strength: float | None = None,
        steps: int | None = None,
    ) -> "AsyncJobHandle":
        """Submit a job that makes it larger; see `client.images.upscale`."""
        return await self._images.upscale(self, scale, method, strength=strength, steps=steps)

    async def star(self) -> "AsyncImageHandle":
        """Star it."""
        return await self._images.star(self)

    async def unstar(self) -> "AsyncImageHandle":
        """Remove its star."""
        return await self._images.unstar(self)

    async def delete(self) -> Deleted:
        """Delete it; `client.images.restore` brings it back for a minute."""
        return await self._images.delete(self)

    def similar(self, **filters: Unpack[SearchFilters]) -> AsyncPages[Hit]:
        """Similar images, best first."""
        return self._images.similar(self, **filters)

    async def thumbnail(self) -> _Bytes:
        """A small WebP."""
        return await self._images.thumbnail(self)

    async def bytes(self) -> _Bytes:
        """The file."""
        return await self._images.download(self)

    async def pil(self) -> "PillowImage":
        """The file as a `PIL.Image.Image`.

        Raises:
            ImportError: Pillow is not installed.
        """
        return open_image(await self.bytes())

    def _repr_png_(self) -> _Bytes | None:
        return png(self.content_type, lambda: read_now(self))

    def _repr_jpeg_(self) -> _Bytes | None:
        return read_now(self) if self.content_type == "image/jpeg" else None

    def _thumbnail_now(self) -> _Bytes | None:
        return read_now(self, thumbnail=True)


class AsyncImages(AsyncResource):
    """`client.images`. Wherever an image is expected, its id works as well."""

    _path = "/v1/images"
    _jobs: "AsyncJobs"
    """Set by them."""

    async def get(self, image: str | Identified) -> AsyncImageHandle:
        """An image's data, with fresh URLs."""
        return await self._fetch(Request("GET", self._at(image)))

    def bind(self, image: Image, job: Job | None = None) -> AsyncImageHandle:
        """An image from another answer (a search result, a job), with its methods."""
        return AsyncImageHandle.of(self, image, job)

    async def download(
        self, image: str | Image, *, through_api: bool = False, attachment: bool = False
    ) -> _Bytes:
        """The file.

        It is read from object storage, with a fresh URL if this one has expired, or through the
        API where object storage cannot be reached from here.

        Args:
            image: the image or its id.
            through_api: do not try object storage first.
            attachment: with `through_api`: send it as a download, for a browser.

        Raises:
            ChecksumMismatch: the bytes received are not those on record.
        """
        known = image if isinstance(image, Image) else await self.get(image)
        data = None if through_api else await self._from_storage(known)
        if data is None:
            fields = {"proxy": True, "download": attachment or None}
            request = Request("GET", self._at(known, "content"), encoding.query(fields))
            data = (await self._transport.send(request)).content
        if hashlib.sha256(data).hexdigest() != known.sha256:
            raise ChecksumMismatch(f"{known.id}: {len(data)} bytes received, with another SHA-256")
        return data

    async def save(self, image: str | Image, path: str | Path = ".") -> Path:
        """Write the file, whole or not at all. Returns where it is.

        Args:
            image: the image or its id.
            path: a file, or a folder, where it gets its own name. A path without an extension
                is a folder. Folders are created.
        """
        known = image if isinstance(image, Image) else await self.get(image)
        data = await self.download(known)
        target = await in_thread(encoding.file_in, Path(path), known.file_name)
        return await in_thread(encoding.write_file, target, data)

    async def thumbnail(self, image: str | Identified) -> _Bytes:
        """A small WebP, through the API."""
        request = Request("GET", self._at(image, "thumbnail"), encoding.query({"proxy": True}))
        return (await self._transport.send(request)).content

    async def receipt(self, image: str | Identified) -> dict[str, Any]:
        """How the image was made, as in the file's `darkroom` chunk."""
        return await self._get(dict[str, Any], self._at(image, "receipt"))

    async def reproduce(
        self,
        image: str | Identified,
        *,
        job: str | Identified | None = None,
        timeout: float | None = None,
    ) -> Reproduction:
        """Make the image again and compare; waits until that is done.

        Args:
            image: the image or its id.
            job: continue with this job, which was started for it before.
            timeout: seconds; None: as long as it takes.

        Raises:
            WaitTimeoutError: it took longer than `timeout` seconds. Call again to continue.
            NotReproducible: the model or the initial image no longer exists.
        """
        deadline = None if timeout is None else time.monotonic() + timeout
        job_id = None if job is None else encoding.id_of(job)
        while True:
            left = _LONGEST_WAIT if deadline is None else deadline - time.monotonic()
            wait = max(0, min(_LONGEST_WAIT, round(left)))
            request = Request(
                "POST",
                self._at(image, "reproduce"),
                encoding.query({"job": job_id}),
                headers={"Prefer": f"wait={wait}"},
                repeatable=True,  # no second job is started while one is unfinished
                waits=wait,
                retry_timeout=self._transport.configuration.retry_timeout,
            )
            result = await self._transport.fetch(Reproduction, request)
            if result.verdict is not None:
                return result
            if deadline is not None and time.monotonic() >= deadline:
                raise WaitTimeoutError(result.job)
            job_id = result.job.id

    async def upscale(
        self,
        image: str | Identified,
        scale: float | None = None,
        method: Literal["lanczos", "latent"] | None = None,
        *,
        strength: float | None = None,
        steps: int | None = None,
        idempotency_key: str | None = None,
    ) -> "AsyncJobHandle":
        """Submit a job that makes the image larger: `(await …).result()` is the larger one.

        Args:
            image: the image or its id.
            scale: how many times, above 1 to 4; by default 2.
            method: `lanczos` (default) resamples the pixels and costs no device time; `latent`
                denoises the upscaled latents with the image's own prompt, seed and settings.
            strength: with `latent`: how far to leave the image; by default 0.7.
            steps: with `latent`: of the whole schedule; by default the image's own.
            idempotency_key: as in `client.jobs.submit`.
        """
        fields = {"scale": scale, "method": method, "strength": strength, "steps": steps}
        headers = {"Idempotency-Key": idempotency_key or encoding.new_idempotency_key()}
        body = encoding.body(fields)
        request = Request("POST", self._at(image, "upscale"), json=body, headers=headers)
        job = await self._transport.fetch(Job, request)
        return self._jobs.handle(job)

    async def provenance(self, image: str | Identified) -> Provenance:
        """How the stored file says that a model made it; its manifest is verified."""
        return await self._get(Provenance, self._at(image, "provenance"))

    async def inspect(self, file: FileSource) -> Inspection:
        """The receipt in a file that Darkroom made; the file is not stored."""
        sent = await in_thread(encoding.read_file, file)
        return await self._post(
            Inspection, "/v1/images/inspect", files={"file": sent}, repeatable=True
        )

    async def star(self, image: str | Identified) -> AsyncImageHandle:
        """Star an image; searches can filter by stars, recommendations prefer them."""
        return await self._fetch(Request("PUT", self._at(image, "star")))

    async def unstar(self, image: str | Identified) -> AsyncImageHandle:
        """Remove the star; the image stays."""
        return await self._fetch(Request("DELETE", self._at(image, "star")))

    async def delete(self, image: str | Identified) -> Deleted:
        """Delete the record, the files, and the prompt's embedding if unused.

        It is hidden at once and gone for good after a minute; see `restore`.
        """
        return await self._delete(Deleted, self._at(image))

    async def restore(self, image: str | Identified) -> AsyncImageHandle:
        """Undo a deletion of the last minute.

        Raises:
            NotFoundError: it was deleted longer ago, or its job was deleted since.
        """
        return await self._fetch(Request("POST", self._at(image, "restore")))

    def similar(
        self,
        image: str | Image | FileSource,
        *,
        page_size: int | None = None,
        after: str | None = None,
        **filters: Unpack[SearchFilters],
    ) -> AsyncPages[Hit]:
        """Images similar to this one, best first, without itself.

        By pixels where the service has an image-text model, else by the meaning of the prompts.

        Args:
            image: an image, its id, or a file; where prompts are compared, a file made by Darkroom.
            page_size: entries to fetch at a time, 1 to 100.
            after: where to continue: the `next_cursor` of a page.
            filters: see `SearchFilters`.
        """
        encoding.refuse_unknown(filters, SearchFilters)
        query = encoding.query({**filters, "limit": page_size})
        if isinstance(image, str | Image):
            body = {"image_id": encoding.image_reference(encoding.id_of(image))}
            request = Request("POST", "/v1/search", query, json=body, repeatable=True)
        else:
            sent = encoding.read_file(image)
            request = Request("POST", "/v1/search", query, files={"file": sent}, repeatable=True)
        return AsyncPages(self._transport, request, Hit, after)

    async def _fetch(self, request: Request) -> AsyncImageHandle:
        return self.bind(await self._transport.fetch(Image, request))

    async def _from_storage(self, image: Image) -> _Bytes | None:
        """The file from object storage; None where that fails."""
        try:
            return await self._read(image.url)
        except APIConnectionError:
            return None  # object storage cannot be reached from here
        except (APIStatusError, APIResponseValidationError):
            fresh = await self.get(image)  # the URL has expired
        try:
            return await self._read(fresh.url)
        except NotFoundError:
            return None  # let the API say what is missing
        except (APIConnectionError, APIStatusError):
            return None

    async def _read(self, url: str) -> _Bytes:
        request = Request("GET", url, retry_timeout=_STORAGE_RETRY_TIMEOUT)
        return (await self._transport.send(request)).content


class AsyncUploads(AsyncResource):
    """`client.uploads`: initial images uploaded ahead."""

    _path = "/v1/uploads"

    async def create(self, file: FileSource) -> Upload:
        """Upload an image: PNG, JPEG or WebP, 10 MB at most, 64 to 4096 pixels a side.

        Raises:
            ImageRefused: it cannot be used; `detail` says why.
        """
        return await self.send(*await in_thread(encoding.read_file, file))

    def list(self, *, page_size: int | None = None, after: str | None = None) -> AsyncPages[Upload]:
        """Initial images, newest first, including those that came with a job."""
        return self._list(Upload, self._path, page_size=page_size, after=after)

    async def get(self, upload: str | Identified) -> Upload:
        """The stored image, with a URL that works for some minutes."""
        return await self._get(Upload, self._at(upload))

    async def delete(self, upload: str | Identified) -> Deleted:
        """Permanently delete it; images made from it stay.

        Raises:
            JobNotFinished: a job that starts from it is queued or running.
        """
        return await self._delete(Deleted, self._at(upload))

    async def send(self, name: str, data: bytes) -> Upload:
        """Like `create`, for bytes."""
        # Sending it twice only wastes an upload.
        return await self._post(Upload, self._path, files={"file": (name, data)}, repeatable=True)


class AsyncSessions(AsyncResource):
    """`client.sessions`: folders of jobs and their images."""

    _path = "/v1/sessions"

    def list(
        self, *, page_size: int | None = None, after: str | None = None
    ) -> AsyncPages[Session]:
        """Sessions, newest first."""
        return self._list(Session, self._path, page_size=page_size, after=after)

    async def get(self, session: str | Identified) -> Session:
        """A session, with the number of its jobs and images."""
        return await self._get(Session, self._at(session))

    def images(
        self,
        session: str | Identified,
        q: str | None = None,
        *,
        page_size: int | None = None,
        after: str | None = None,
    ) -> AsyncPages[HistoryImage]:
        """The history: newest first, or with `q` by meaning, best first."""
        path = self._at(session, "images")
        return self._list(HistoryImage, path, page_size=page_size, after=after, q=q)

    async def delete(self, session: str | Identified) -> Deleted:
        """Permanently delete everything in it.

        Raises:
            JobNotFinished: one of its jobs is queued or running; nothing was deleted.
        """
        return await self._delete(Deleted, self._at(session))


class AsyncPrompts(AsyncResource):
    """`client.prompts`."""

    async def recommend(
        self, q: str | None = None, *, session_id: str | None = None, limit: int | None = None
    ) -> list[Recommendation]:
        """Prompts similar to `q`, which may be half typed, or else to the session's latest.

        Args:
            q: the beginning of a prompt, or None.
            session_id: prompts that it has already used are left out.
            limit: 1 to 50; 8 by default.
        """
        path = "/v1/prompts/recommendations"
        pages = self._list(Recommendation, path, page_size=limit, q=q, session_id=session_id)
        return list((await pages.page()).data)
