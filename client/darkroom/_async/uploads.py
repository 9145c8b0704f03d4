"""Initial images that are sent ahead."""

from typing import TYPE_CHECKING

from darkroom import wire
from darkroom._async.concurrency import in_thread
from darkroom._async.pages import AsyncPages
from darkroom._async.transport import AsyncTransport, Request
from darkroom.decoding import decode
from darkroom.types.images import Deleted, Upload
from darkroom.types.requests import FileSource

if TYPE_CHECKING:
    from darkroom.wire import Identified


class AsyncUploads:
    """`client.uploads`."""

    def __init__(self, transport: AsyncTransport) -> None:
        self._transport = transport

    async def create(self, file: FileSource) -> Upload:
        """Send a picture: PNG, JPEG or WebP, 10 MB at most, 64 to 4096 pixels a side.

        Raises:
            ImageRefused: it cannot be used; `detail` says why.
        """
        return await self.send(*await in_thread(wire.read_file, file))

    def list(self, *, page_size: int | None = None, after: str | None = None) -> AsyncPages[Upload]:
        """Initial images, newest first, those that came with a job too."""
        asked = Request("GET", "/v1/uploads", wire.query({"limit": page_size}))
        return AsyncPages(self._transport, asked, Upload, after)

    async def get(self, upload: "str | Identified") -> Upload:
        """What was kept, with a URL that reads it for some minutes."""
        path = f"/v1/uploads/{wire.segment(upload)}"
        return decode(Upload, await self._transport.json(Request("GET", path)))

    async def delete(self, upload: "str | Identified") -> Deleted:
        """Delete it for good; what was made from it stays.

        Raises:
            JobNotFinished: a job that starts from it waits or runs.
        """
        path = f"/v1/uploads/{wire.segment(upload)}"
        return decode(Deleted, await self._transport.json(Request("DELETE", path)))

    async def send(self, name: str, data: bytes) -> Upload:
        """The same as `create`, of bytes at hand."""
        # Twice is harmless: an upload that nobody uses.
        asked = Request("POST", "/v1/uploads", files={"file": (name, data)}, repeatable=True)
        return decode(Upload, await self._transport.json(asked))
