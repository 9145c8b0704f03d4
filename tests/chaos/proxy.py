"""A small TCP proxy that breaks connections on purpose: cuts, silence, delays, lost answers.

One thread runs an event loop for all connections; the trial's thread turns the knobs. What is
decided per request is decided by `judge`, which sees each chunk that a client sends.
"""

import asyncio
import contextlib
import socket
import struct
import threading
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from enum import Enum
from typing import Any, Self


class Verdict(Enum):
    """What happens to a chunk that a client has sent."""

    FORWARD = "forward"
    CUT = "cut"
    """The chunk is not forwarded, and both connections are reset."""
    CUT_ANSWER = "cut answer"
    """The chunk is forwarded; as soon as the server answers, both connections are reset."""


@dataclass(frozen=True)
class Answer:
    """The proxy answers in the server's place and closes."""

    body: bytes


Judge = Callable[[bytes], Verdict | Answer]


class Proxy:
    """Listens, by default on the loopback, and forwards to a port of it; a context manager."""

    def __init__(self, target_port: int, listener: socket.socket | None = None) -> None:
        self._listener = listener or socket.create_server(("127.0.0.1", 0))
        self.host, self.port = self._listener.getsockname()[:2]
        self._target_port = target_port
        self.refusing = False
        """New connections are reset at once."""
        self.silent = False
        """Nothing is forwarded in either direction, but connections stay open (half-open)."""
        self.delay = 0.0
        """Seconds before each chunk of a client is forwarded."""
        self.judge: Judge = lambda _: Verdict.FORWARD
        self.cuts = 0
        """How many connections `judge` has cut."""
        self._loop = asyncio.new_event_loop()
        self._open: set[asyncio.StreamWriter] = set()
        self._server: asyncio.Server | None = None
        self._thread = threading.Thread(target=self._loop.run_forever, name="proxy", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        self._run(self._listen())
        return self

    def __exit__(self, *_: object) -> None:
        self._run(self._close())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(timeout=5)

    def cut_all(self) -> None:
        """Reset every open connection."""
        self._run(self._reset_all())

    def _run(self, work: Coroutine[Any, Any, None]) -> None:
        asyncio.run_coroutine_threadsafe(work, self._loop).result(timeout=10)

    async def _listen(self) -> None:
        self._server = await asyncio.start_server(self._serve, sock=self._listener)

    async def _close(self) -> None:
        assert self._server is not None
        self._server.close()
        await self._reset_all()

    async def _reset_all(self) -> None:
        for writer in list(self._open):
            _reset(writer)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self.refusing:
            _reset(writer)
            return
        try:
            up_reader, up_writer = await asyncio.open_connection("127.0.0.1", self._target_port)
        except OSError:
            _reset(writer)
            return
        pair = (writer, up_writer)
        self._open.update(pair)
        answer_lost = asyncio.Event()
        try:
            up = asyncio.ensure_future(self._upstream(reader, writer, up_writer, answer_lost))
            down = asyncio.ensure_future(self._downstream(up_reader, writer, answer_lost))
            done, pending = await asyncio.wait((up, down), return_when=asyncio.FIRST_COMPLETED)
            for task in (*done, *pending):
                task.cancel()
                with contextlib.suppress(asyncio.CancelledError, OSError):
                    await task
        finally:
            self._open.difference_update(pair)
            for one in pair:
                _reset(one) if answer_lost.is_set() else one.close()

    async def _upstream(
        self,
        reader: asyncio.StreamReader,
        client: asyncio.StreamWriter,
        server: asyncio.StreamWriter,
        answer_lost: asyncio.Event,
    ) -> None:
        while chunk := await reader.read(65536):
            await self._hold()
            if self.delay:
                await asyncio.sleep(self.delay)
            verdict = self.judge(chunk)
            if isinstance(verdict, Answer):
                client.write(verdict.body)
                await client.drain()
                return
            if verdict is not Verdict.FORWARD:
                self.cuts += 1
                answer_lost.set()
            if verdict is Verdict.CUT:
                return
            server.write(chunk)
            await server.drain()

    async def _downstream(
        self, reader: asyncio.StreamReader, client: asyncio.StreamWriter, answer_lost: asyncio.Event
    ) -> None:
        while chunk := await reader.read(65536):
            await self._hold()
            if answer_lost.is_set():
                return
            client.write(chunk)
            await client.drain()

    async def _hold(self) -> None:
        while self.silent:  # noqa: ASYNC110  (set from another thread)
            await asyncio.sleep(0.05)


def _reset(writer: asyncio.StreamWriter) -> None:
    """Close with RST, as a crashed peer would."""
    with contextlib.suppress(OSError, AttributeError):
        raw: socket.socket = writer.get_extra_info("socket")
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()
