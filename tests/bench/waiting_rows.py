"""What many waits and event streams of some keys cost another tenant's requests.

The crowd is a process of its own: connections that ask at the same moment, hold what they get, and
come back when `Retry-After` says so. Beside it one client of another tenant reads and submits.
"""

import asyncio
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from urllib.parse import urlsplit

import httpx2

from tests.bench.http_load import prepare_get, prepare_post
from tests.bench.neighbour import BODY, send_beside, side_by_side, submit
from tests.bench.row import Row, make_row
from tests.bench.system import System, running_system
from tests.processes import ApiProcess

_REPEATS = 5
_WAITS_OF_ONE = 1200
_KEYS = 5
_STREAMS_EACH = 60
_WAITS_EACH = 40
_WAIT_SECONDS = 8
_STORM_SECONDS = 12.0
"""The waits end within it, all at about the same moment."""
_OPENING_SECONDS = 30.0
_WAIT = {"Prefer": f"wait={_WAIT_SECONDS}", "Connection": "close"}


def rows() -> Iterator[Row]:
    """The worst request of another tenant in either crowd; how many of the second were refused."""
    with running_system() as system:
        api = system.api()
        other = api.client(system.key_of("other"))
        one = system.key_of("crowd")
        job = submit(api.client(one))
        waits = [
            prepare_get(api.url, job, one, _WAIT),
            prepare_post(api.url, "/v1/jobs", one, BODY, _WAIT),
        ]
        crowds = [_beside(api, other, waits * (_WAITS_OF_ONE // 2)) for _ in range(_REPEATS)]
        yield make_row(
            f"{_WAITS_OF_ONE} waits of one key: another tenant's worst request",
            [crowd.worst for crowd in crowds],
            unit="s",
            goal=0.5,
            better="lower",
            baseline=f"median {_median_ms(crowds):.0f} ms; 0.002 to 0.008 s without the crowd",
        )
        mixed = _mixed(system, api)
        crowds = [_beside(api, other, mixed) for _ in range(_REPEATS)]
        yield make_row(
            f"{_KEYS * _STREAMS_EACH} event streams and {_KEYS * _WAITS_EACH} waits of {_KEYS} "
            "keys at once: another tenant's worst request",
            [crowd.worst for crowd in crowds],
            unit="s",
            goal=0.5,
            better="lower",
            baseline=f"median {_median_ms(crowds):.0f} ms",
        )
        yield make_row(
            "refused of these streams and waits",
            [crowd.refused for crowd in crowds],
            unit="requests",
            goal=0,
            better="lower",
            baseline=f"of {len(mixed)} within their keys' limits",
        )


@dataclass(frozen=True)
class _Crowd:
    """What one crowd did to the other tenant, and what was done to it."""

    latencies: Sequence[float]
    refused: int

    @property
    def worst(self) -> float:
        return max(self.latencies)


def _median_ms(crowds: Sequence[_Crowd]) -> float:
    together = sorted(one for crowd in crowds for one in crowd.latencies)
    return together[len(together) // 2] * 1000


def _mixed(system: System, api: ApiProcess) -> list[bytes]:
    """Streams and waits of several keys, each of jobs of its own."""
    requests = []
    for number in range(_KEYS):
        key = system.key_of(f"crowd-{number}")
        with api.client(key) as client:
            jobs = [submit(client) for _ in range(_STREAMS_EACH)]
        requests += [prepare_get(api.url, f"{job}/events", key) for job in jobs]
        requests += [prepare_get(api.url, job, key, _WAIT) for job in jobs[: _WAITS_EACH // 2]]
        submission = prepare_post(api.url, "/v1/jobs", key, BODY, _WAIT)
        requests += [submission] * (_WAITS_EACH // 2)
    return requests


def _beside(api: ApiProcess, other: httpx2.Client, requests: Sequence[bytes]) -> _Crowd:
    """Let the crowd loose, and be the other tenant until it is gone."""
    latencies, statuses = send_beside(other, partial(_storm, api.url, requests))
    refused = sum(n for status, n in statuses.items() if status not in (200, 202))
    return _Crowd(latencies, refused)


async def _storm(url: str, requests: Sequence[bytes]) -> Counter[int]:
    """How often each status came; 0 for connections that were cut."""
    statuses: Counter[int] = Counter()
    members = (_member(url, request, statuses) for request in requests)
    for error in await side_by_side(members, _STORM_SECONDS):
        if isinstance(error, Exception):
            statuses[0] += 1  # cut off without an answer
    return statuses


async def _member(url: str, request: bytes, statuses: Counter[int]) -> None:
    """Ask, hold the answer for as long as it lasts, come back if refused."""
    address = urlsplit(url)
    while True:
        opening = asyncio.open_connection(address.hostname, address.port)
        reader, writer = await asyncio.wait_for(opening, _OPENING_SECONDS)
        try:
            writer.write(request)
            head = (await reader.readuntil(b"\r\n\r\n")).lower()
            status = int(head.split(b" ", 2)[1])
            statuses[status] += 1
            if status in (429, 503):
                after = head.partition(b"retry-after:")[2].partition(b"\r\n")[0]
                await asyncio.sleep(float(after or 1))
                continue
            await reader.read()
            return
        finally:
            writer.close()
