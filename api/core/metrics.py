"""Metrics of requests and searches."""

from collections.abc import Sequence

from fastapi.routing import APIRoute, iter_route_contexts
from prometheus_client import Counter, Histogram
from starlette.routing import BaseRoute

from api.core.error_catalogue import CATALOGUE
from shared.core.metrics import show_zeros

REQUESTS = Counter(
    "darkroom_http_requests",
    "Requests answered. The route is the path's template; `unmatched` stands for all other paths.",
    ["method", "route", "status"],
)

REQUEST_SECONDS = Histogram(
    "darkroom_http_request_seconds",
    "From a request's header to its answer's, so that streams count with their beginning. Requests "
    "that ask to wait (`Prefer: wait`) are left out.",
    ["method", "route"],
    buckets=(0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30),
)

_SERVER_ERRORS = ("500", "503")

PROBLEMS = Counter(
    "darkroom_http_problems", "Requests refused or failed, by the code of the problem.", ["code"]
)

SEMAPHORE_WAIT_SECONDS = Histogram(
    "darkroom_pool_wait_seconds",
    "How long work that had to wait did so for its key's turn in a shared pool.",
    ["pool"],
    buckets=(0.001, 0.005, 0.01, 0.05, 0.1, 0.5, 1, 5, 10, 30),
)

SEMAPHORE_REFUSALS = Counter(
    "darkroom_pool_refusals",
    "Work refused because too much of its key's work already waited for a shared pool.",
    ["pool"],
)

SEARCH_SECONDS = Histogram(
    "darkroom_search_seconds",
    "Searches by their stages: the query's embedding, from a cache or a CPU worker, and the whole.",
    ["stage"],
    buckets=(0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10),
)


def watch_routes(routes: Sequence[BaseRoute]) -> None:
    """Show searches, the server errors of every route, and every problem, from now on."""
    show_zeros(SEARCH_SECONDS, ("embedding", "whole"))
    show_zeros(PROBLEMS, CATALOGUE)
    for route in iter_route_contexts(routes):
        if isinstance(route.original_route, APIRoute):
            show_zeros(REQUESTS, route.methods or (), (str(route.path_format),), _SERVER_ERRORS)
