"""HTTP of queues: for the operator, because they hold the jobs of all tenants.

What a tenant needs to know, how many jobs go before its own and when that is done, is in the job.
"""

from typing import Any

from fastapi import APIRouter, Response

from api.auth import Operator
from api.deps import Res
from api.problems import responses
from api.queues import service
from api.queues.schemas import QueueDepth
from api.wire import Page, json_answer

router = APIRouter(prefix="/v1/queues", tags=["queues"])

_EXAMPLE: dict[str, Any] = {
    "data": [
        {
            "model": "sd21",
            "lane": "interactive",
            "queued": 3,
            "running": 8,
            "oldest_age_seconds": 1.482,
        },
        {
            "model": "sd21",
            "lane": "bulk",
            "queued": 0,
            "running": 0,
            "oldest_age_seconds": None,
        },
    ],
    "has_more": False,
    "next_cursor": None,
}


@router.get(
    "",
    operation_id="queues.list",
    summary="List the queues",
    response_class=Response,
    responses={
        200: {
            "model": Page[QueueDepth],
            "content": {"application/json": {"example": _EXAMPLE}},
        },
        **responses("insufficient_scope", "database_unavailable"),
    },
)
async def list_queues(resources: Res, _: Operator) -> Response:
    """Both lanes of every model, on one page: how many jobs wait, for how long, and how many run.

    All tenants' jobs, counted in the ledger about once a second.
    """
    return json_answer(await service.list_queues(resources))
