"""Metrics of requests and searches."""

import functools
import time
from collections.abc import Awaitable, Callable
from typing import ParamSpec, TypeVar

from prometheus_client import Counter, Histogram

P = ParamSpec("P")


T = TypeVar("T")


REQUESTS = Counter(
    "darkroom_http_requests",
    "Requests answered. The route is its template; `unmatched` stands for all other paths.",
    ["method", "route", "status"],
)


REQUEST_SECONDS = Histogram(
    "darkroom_http_request_seconds",
    "From a request's header to its answer's, so that streams count with their beginning. Requests "
    "that ask to wait (`Prefer: wait`) are left out.",
    ["method", "route"],
    buckets=(0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30),
)


PROBLEMS = Counter(
    "darkroom_http_problems",
    "Requests refused or failed, by the code of the problem.",
    ["code"],
)


GATE_WAIT_SECONDS = Histogram(
    "darkroom_gate_wait_seconds",
    "How long work waited for its key's turn in a pool that keys share, where it had to; by the "
    "pool.",
    ["gate"],
    buckets=(0.001, 0.005, 0.01, 0.05, 0.1, 0.5, 1, 5, 10, 30),
)


GATE_REFUSALS = Counter(
    "darkroom_gate_refusals",
    "Work refused because too much of one key waited for a shared pool already, by the pool.",
    ["gate"],
)


SEARCH_SECONDS = Histogram(
    "darkroom_search_seconds",
    "Searches by their stages: the query's embedding, from a cache or a CPU worker, and the whole.",
    ["stage"],
    buckets=(0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10),
)


def timed_search(stage: str) -> Callable[[Callable[P, Awaitable[T]]], Callable[P, Awaitable[T]]]:
    """A decorator: this coroutine function is a stage of searches (`embedding` or `whole`)."""
    seconds = SEARCH_SECONDS.labels(stage)

    def decorate(function: Callable[P, Awaitable[T]]) -> Callable[P, Awaitable[T]]:
        @functools.wraps(function)
        async def timed(*args: P.args, **kwargs: P.kwargs) -> T:
            begun = time.perf_counter()
            try:
                return await function(*args, **kwargs)
            finally:
                seconds.observe(time.perf_counter() - begun)

        return timed

    return decorate
