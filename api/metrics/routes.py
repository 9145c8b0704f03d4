"""`GET /metrics` of the API: for Prometheus, not for tenants, and so not in the OpenAPI page."""

import asyncio
from ipaddress import ip_address

from fastapi import APIRouter, Request, Response

from api.deps import Res
from api.problems import Problem
from shared.metrics.exposition import CONTENT_TYPE, is_authorized, render

router = APIRouter(include_in_schema=False)

_FORWARDED = frozenset({"forwarded", "x-forwarded-for", "x-real-ip"})


@router.get("/metrics")
async def metrics(request: Request, resources: Res) -> Response:
    """With the token where one is set; without one, to direct neighbours on loopback alone."""
    token = resources.settings.metrics_token
    if token is None:
        if not _is_neighbour(request):
            raise Problem("not_found", "There is nothing at this path.")
    elif not is_authorized(request.headers.get("authorization", ""), token):
        raise Problem(
            "unauthenticated",
            "The metrics need their token.",
            headers={"WWW-Authenticate": "Bearer"},
        )
    return Response(await asyncio.to_thread(render), media_type=CONTENT_TYPE)


def _is_neighbour(request: Request) -> bool:
    """On this host and not by way of a proxy, which would make a neighbour of everybody."""
    if request.client is None or not _FORWARDED.isdisjoint(request.headers.keys()):
        return False
    try:
        return ip_address(request.client.host).is_loopback
    except ValueError:
        return False
