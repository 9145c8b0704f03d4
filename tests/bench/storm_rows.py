"""What a storm of one key's requests costs another tenant's light ones.

The storm is a process of its own: connections that each send one request after the other. Beside it
one client of another tenant reads a job and submits jobs.
"""

import asyncio
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from urllib.parse import urlsplit

from shared.core.keys import new_key
from shared.core.quotas import Quotas
from tests.bench.http_load import prepare_get, prepare_post, read_status, saturate
from tests.bench.neighbour import BODY, send_beside, send_light_requests, side_by_side, submit
from tests.bench.row import Row, make_row
from tests.bench.system import System, running_system
from tests.images import png
from tests.processes import ApiProcess, wait_until

_REPEATS = 3
_STORM_SECONDS = 6.0
_CALM_SECONDS = 2.0
_GOAL = 0.5
_LISTED = 200
_SIDE = 4096
_BOUNDARY = "an-upload-of-the-storm"


@dataclass(frozen=True)
class _Storm:
    """So many connections; each takes the next request by turns."""

    name: str
    connections: int
    requests: Sequence[bytes]


def rows() -> Iterator[Row]:
    """The neighbour's worst request under each storm."""
    with running_system() as system:
        api = system.api()
        neighbour = api.client(system.key_of("neighbour"))
        flood = system.key_of("flood")
        _make_images(system, api, flood)
        job = submit(neighbour)
        calm_ends = time.monotonic() + _CALM_SECONDS
        calm = max(send_light_requests(neighbour, job, lambda: time.monotonic() < calm_ends))
        for storm in _storms(system, api, flood):
            crowd = partial(_rage, api.url, storm)
            worst = [max(send_beside(neighbour, crowd)[0]) for _ in range(_REPEATS)]
            yield make_row(
                f"a neighbour's worst request under {storm.name}",
                worst,
                unit="s",
                goal=_GOAL,
                better="lower",
                baseline=f"{calm * 1000:.0f} ms without a storm",
            )


def _storms(system: System, api: ApiProcess, flood: str) -> Iterator[_Storm]:
    strangers = [prepare_get(api.url, "/v1/jobs", new_key().key) for _ in range(2000)]
    yield _Storm("unknown keys", 40, strangers)
    paths = ("/v1/jobs", "/v1/sessions/default/images")
    lists = [prepare_get(api.url, f"{path}?limit={_LISTED}", flood) for path in paths]
    yield _Storm(f"lists of {_LISTED}", 40, lists)
    yield _Storm("/openapi.json", 40, [prepare_get(api.url, "/openapi.json", flood)])
    limited = system.key_of("limited", Quotas(concurrent_jobs=1_000_000))
    submission = prepare_post(api.url, "/v1/jobs", limited, BODY)
    yield _Storm("100 submissions at once under one quota", 100, [submission])
    yield _Storm(f"40 uploads at once of a {_SIDE}² PNG", 40, [_upload(api.url, flood)])


def _make_images(system: System, api: ApiProcess, flood: str) -> None:
    """As many finished jobs of the key as a list holds, each with an image."""
    worker = system.worker("null")
    submission = prepare_post(api.url, "/v1/jobs", flood, BODY)
    while (missing := _LISTED - system.succeeded()) > 0:
        # A busy machine's Redis may not answer in time, and no dispatcher publishes what is left.
        saturate(api.url, submission, 4, missing)
        with suppress(AssertionError):
            wait_until(lambda: system.succeeded() >= _LISTED, 10)
    worker.stop()


def _upload(url: str, key: str) -> bytes:
    disposition = 'Content-Disposition: form-data; name="file"; filename="a.png"'
    head = f"--{_BOUNDARY}\r\n{disposition}\r\nContent-Type: image/png\r\n\r\n".encode()
    body = head + png("red", _SIDE, _SIDE) + f"\r\n--{_BOUNDARY}--\r\n".encode()
    lines = (
        "POST /v1/uploads HTTP/1.1",
        f"Host: {urlsplit(url).netloc}",
        f"Authorization: Bearer {key}",
        f"Content-Type: multipart/form-data; boundary={_BOUNDARY}",
        f"Content-Length: {len(body)}",
    )
    return "\r\n".join((*lines, "", "")).encode() + body


async def _rage(url: str, storm: _Storm) -> None:
    senders = (_send(url, storm, n) for n in range(storm.connections))
    await side_by_side(senders, _STORM_SECONDS)


async def _send(url: str, storm: _Storm, number: int) -> None:
    """One connection, opened anew when the API closes it."""
    address = urlsplit(url)
    while True:
        reader, writer = await asyncio.open_connection(address.hostname, address.port)
        try:
            while True:
                writer.write(storm.requests[number % len(storm.requests)])
                number += storm.connections + 1
                await read_status(reader)
        except (OSError, asyncio.IncompleteReadError):
            continue
        finally:
            writer.close()
