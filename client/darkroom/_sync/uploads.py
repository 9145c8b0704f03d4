# Generated from darkroom/_async by client/make_sync.py (`make client`). Do not edit.
"""Initial images that are sent ahead."""

from typing import TYPE_CHECKING

from darkroom import wire
from darkroom._sync.concurrency import in_thread
from darkroom._sync.pages import Pages
from darkroom._sync.transport import Request, Transport
from darkroom.decoding import decode
from darkroom.types.images import Deleted, Upload
from darkroom.types.requests import FileSource

if TYPE_CHECKING:
    from darkroom.wire import Identified


class Uploads:
    """`client.uploads`."""

    def __init__(self, transport: Transport) -> None:
        self._transport = transport

    def create(self, file: FileSource) -> Upload:
        """Send a picture: PNG, JPEG or WebP, 10 MB at most, 64 to 4096 pixels a side.

        Raises:
            ImageRefused: it cannot be used; `detail` says why.
        """
        return self.send(*in_thread(wire.read_file, file))

    def list(self, *, page_size: int | None = None, after: str | None = None) -> Pages[Upload]:
        """Initial images, newest first, those that came with a job too."""
        asked = Request("GET", "/v1/uploads", wire.query({"limit": page_size}))
        return Pages(self._transport, asked, Upload, after)

    def get(self, upload: "str | Identified") -> Upload:
        """What was kept, with a URL that reads it for some minutes."""
        path = f"/v1/uploads/{wire.segment(upload)}"
        return decode(Upload, self._transport.json(Request("GET", path)))

    def delete(self, upload: "str | Identified") -> Deleted:
        """Delete it for good; what was made from it stays.

        Raises:
            JobNotFinished: a job that starts from it waits or runs.
        """
        path = f"/v1/uploads/{wire.segment(upload)}"
        return decode(Deleted, self._transport.json(Request("DELETE", path)))

    def send(self, name: str, data: bytes) -> Upload:
        """The same as `create`, of bytes at hand."""
        # Twice is harmless: an upload that nobody uses.
        asked = Request("POST", "/v1/uploads", files={"file": (name, data)}, repeatable=True)
        return decode(Upload, self._transport.json(asked))
