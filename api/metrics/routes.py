"""`GET /metrics` of the API: for Prometheus, not for tenants, and so not in the OpenAPI page."""

import asyncio

from fastapi import APIRouter, Request, Response

from api.deps import Res
from api.problems import Problem
from shared.metrics.exposition import CONTENT_TYPE, is_authorized, render

router = APIRouter(include_in_schema=False)


@router.get("/metrics")
async def metrics(request: Request, resources: Res) -> Response:
    """With the token, where one is set. Without one the path does not exist here: every client of
    a proxy on this host looks like a neighbour, so a listener of its own serves them."""
    token = resources.settings.metrics_token
    if token is None:
        raise Problem("not_found", "There is nothing at this path.")
    if not is_authorized(request.headers.get("authorization", ""), token):
        raise Problem(
            "unauthenticated",
            "The metrics need their token.",
            headers={"WWW-Authenticate": "Bearer"},
        )
    return Response(await asyncio.to_thread(render), media_type=CONTENT_TYPE)
