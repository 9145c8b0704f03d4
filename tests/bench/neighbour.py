"""A client of one tenant beside a crowd of others', which is a process of its own."""

import asyncio
import multiprocessing
import time
from collections.abc import Callable, Coroutine, Iterable
from functools import partial
from multiprocessing.connection import Connection
from typing import Any
from urllib.parse import urlsplit

import httpx2

_PAUSE = 0.01
_RETRY_SECONDS = 0.1
BODY = {"prompt": "a lighthouse", "model": "null"}
"""Of a job that nobody need run."""


def submit(client: httpx2.Client) -> str:
    """The path of a new job."""
    answer = client.post("/v1/jobs", json=BODY)
    answer.raise_for_status()
    return urlsplit(str(answer.json()["links"]["self"])).path


def send_light_requests(
    client: httpx2.Client, job: str, goes_on: Callable[[], bool]
) -> list[float]:
    """Be the neighbour, who reads this job and submits others; the seconds of each request."""
    latencies = []
    while goes_on():
        for ask in (partial(client.get, job), partial(client.post, "/v1/jobs", json=BODY)):
            sent = time.perf_counter()
            while not ask().is_success:  # as a client tries again; it is part of the latency
                time.sleep(_RETRY_SECONDS)
            latencies.append(time.perf_counter() - sent)
        time.sleep(_PAUSE)
    return latencies


def send_beside(
    client: httpx2.Client, crowd: Callable[[], Coroutine[Any, Any, Any]]
) -> tuple[list[float], Any]:
    """Be the neighbour until the crowd is done; gives also what the crowd returned."""
    job = submit(client)
    ours, theirs = multiprocessing.Pipe()
    process = multiprocessing.get_context("spawn").Process(
        target=_run, args=(theirs, crowd), daemon=True
    )
    process.start()
    ours.recv()  # it begins now
    latencies = send_light_requests(client, job, lambda: not ours.poll())
    returned = ours.recv()
    process.join()
    return latencies, returned


def _run(pipe: Connection, crowd: Callable[[], Coroutine[Any, Any, Any]]) -> None:
    pipe.send("ready")
    pipe.send(asyncio.run(crowd()))


async def side_by_side(
    members: Iterable[Coroutine[Any, Any, Any]], seconds: float
) -> list[BaseException | Any]:
    """Run them for so long at most; what each returned or raised."""
    tasks = [asyncio.ensure_future(member) for member in members]
    await asyncio.wait(tasks, timeout=seconds)
    for task in tasks:
        task.cancel()
    return await asyncio.gather(*tasks, return_exceptions=True)
