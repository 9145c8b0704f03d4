"""A load generator that costs little: prepared bytes over kept-alive connections."""

import asyncio
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

NO_MORE: Mapping[str, str] = {}
_TRIES = 20
_RETRY_SECONDS = 0.2


@dataclass(frozen=True)
class Load:
    """What a run of requests gave."""

    seconds: float
    latencies: Sequence[float]
    """Seconds each, in the order of completion."""

    @property
    def rate(self) -> float:
        """Requests per second."""
        return len(self.latencies) / self.seconds


def prepare_post(
    url: str, path: str, key: str, body: dict[str, Any], headers: Mapping[str, str] = NO_MORE
) -> bytes:
    """One HTTP/1.1 request as bytes."""
    payload = json.dumps(body).encode()
    all_headers = {
        "Host": urlsplit(url).netloc,
        "Authorization": f"Bearer {key}",
        "Content-Type": "application/json",
        "Content-Length": len(payload),
        **headers,
    }
    head = "".join(f"{name}: {value}\r\n" for name, value in all_headers.items())
    return f"POST {path} HTTP/1.1\r\n{head}\r\n".encode() + payload


def prepare_get(url: str, path: str, key: str, headers: Mapping[str, str] = NO_MORE) -> bytes:
    """One HTTP/1.1 request without a body as bytes."""
    all_headers = {"Host": urlsplit(url).netloc, "Authorization": f"Bearer {key}", **headers}
    head = "".join(f"{name}: {value}\r\n" for name, value in all_headers.items())
    return f"GET {path} HTTP/1.1\r\n{head}\r\n".encode()


def saturate(url: str, request: bytes, connections: int, count: int) -> Load:
    """Send `count` requests, each connection as fast as it is answered."""
    return asyncio.run(_run(url, request, connections, count, interval=0.0))


def at_rate(url: str, request: bytes, connections: int, count: int, rate: float) -> Load:
    """Send `count` requests at a steady rate; latency counts from when one was due."""
    return asyncio.run(_run(url, request, connections, count, interval=1.0 / rate))


async def _run(url: str, request: bytes, connections: int, count: int, interval: float) -> Load:
    address = urlsplit(url)
    numbers = iter(range(count))
    latencies: list[float] = []
    started = time.perf_counter()

    async def connection() -> None:
        reader, writer = await asyncio.open_connection(address.hostname, address.port)
        for number in numbers:
            due = started + number * interval
            await asyncio.sleep(max(0.0, due - time.perf_counter()))
            sent = due if interval else time.perf_counter()
            await _until_accepted(reader, writer, request)
            latencies.append(time.perf_counter() - sent)
        writer.close()

    await asyncio.gather(*(connection() for _ in range(connections)))
    return Load(time.perf_counter() - started, latencies)


async def _until_accepted(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, request: bytes
) -> None:
    """Ask again after a 503, as a client would; what that takes is part of the latency."""
    for _ in range(_TRIES):
        writer.write(request)
        status = await read_status(reader)
        if status == 202:
            return
        if status != 503:
            break
        await asyncio.sleep(_RETRY_SECONDS)
    raise RuntimeError(f"the answer was {status}")


async def read_status(reader: asyncio.StreamReader) -> int:
    """Read a whole answer, and tell its status."""
    head = (await reader.readuntil(b"\r\n\r\n")).lower()
    length = head.partition(b"content-length:")[2].partition(b"\r\n")[0]
    await reader.readexactly(int(length))
    return int(head.split(b" ", 2)[1])
