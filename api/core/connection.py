"""uvicorn's HTTP connection, impatient with clients that never finish their header or body.

uvicorn waits for a header without end in time or size; a client that opens connections and sends
a byte a minute would keep them all. Started with `uvicorn --http api.core.connection:Connection`.
"""

import asyncio
from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from shared.core.settings import get_settings

_MAX_HEADER_BYTES = 64 * 1024

_LINGER_SECONDS = 2.0
"""How long a client may continue with a body that was answered unread; cut at once, it would often
lose the answer too."""


class Connection(HttpToolsProtocol):
    """One client's connection."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._grace = get_settings().request_grace.total_seconds()
        self._header_timer: asyncio.TimerHandle | None = None
        self._linger_timer: asyncio.TimerHandle | None = None
        self._header_bytes = 0

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """The first header is awaited from here on."""
        super().connection_made(transport)
        self._await_header()

    def data_received(self, data: bytes) -> None:
        """Counts the header's bytes before they pile up in the parser."""
        super().data_received(data)
        if self._header_timer is not None:
            self._header_bytes += len(data)
            if self._header_bytes > _MAX_HEADER_BYTES and not self.transport.is_closing():
                self.send_400_response("The header is too large.")

    def on_message_begin(self) -> None:
        """A later request on the same connection: its header is awaited from its first byte."""
        super().on_message_begin()
        self._await_header()

    def on_headers_complete(self) -> None:
        """The body has its own deadline, in `api.core.limits`."""
        self._stop_waiting()
        super().on_headers_complete()

    def on_response_complete(self) -> None:
        """Ends the connection if the body was answered before all of it was sent."""
        super().on_response_complete()
        if self.cycle is not None and self.cycle.more_body and not self.transport.is_closing():
            self._linger_timer = self.loop.call_later(_LINGER_SECONDS, self.transport.close)

    def on_message_complete(self) -> None:
        """A body that came after all leaves the connection fit for the next request."""
        super().on_message_complete()
        self._stop_lingering()

    def _stop_lingering(self) -> None:
        if self._linger_timer is not None:
            self._linger_timer.cancel()
            self._linger_timer = None

    def connection_lost(self, exc: Exception | None) -> None:
        """Nothing is awaited any more."""
        self._stop_waiting()
        self._stop_lingering()
        super().connection_lost(exc)

    def _await_header(self) -> None:
        self._stop_waiting()
        self._header_bytes = 0
        self._header_timer = self.loop.call_later(self._grace, self.transport.abort)

    def _stop_waiting(self) -> None:
        if self._header_timer is not None:
            self._header_timer.cancel()
            self._header_timer = None
