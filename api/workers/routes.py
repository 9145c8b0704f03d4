"""HTTP of workers: for the operator, because workers serve all tenants and their names tell hosts.

What a tenant needs to know, which models are served, is in GET /v1/models.
"""

from typing import Annotated, Any

from fastapi import APIRouter, Path, Response

from api.auth import Operator
from api.deps import Res
from api.problems import responses
from api.wire import Page, json_answer
from api.workers import service
from api.workers.schemas import Worker

router = APIRouter(prefix="/v1/workers", tags=["workers"])

WorkerName = Annotated[
    str,
    Path(description="As in GET /v1/workers.", examples=["gpu-7-generate"], max_length=255),
]
_PROBLEMS = ("insufficient_scope", "workers_unknown", "database_unavailable")

_BUSY: dict[str, Any] = {
    "name": "gpu-7-generate",
    "kind": "gpu",
    "state": "busy",
    "device": "NVIDIA H200",
    "models": [
        {
            "name": "sd21",
            "state": "warm",
            "rows": 8,
            "sizes": [{"width": 512, "height": 512}],
            "content_hash": "5f1c7a0e2b9d4c86a3f0e1d2c3b4a5968778695a4b3c2d1e0f9e8d7c6b5a4938",
            "memory_bytes": 2580000000,
        }
    ],
    "jobs": 5,
    "threads": 27,
    "memory": {"used": 2580000000, "limit": None},
    "dispatches": False,
    "lag": 3.2,
    "version": "0.1.0",
    "started_at": "2026-01-31T09:00:00Z",
    "drain": None,
    "links": {
        "self": "https://darkroom.example/v1/workers/gpu-7-generate",
        "drain": "https://darkroom.example/v1/workers/gpu-7-generate/drain",
        "resume": "https://darkroom.example/v1/workers/gpu-7-generate/resume",
    },
}
_DRAINING: dict[str, Any] = {
    **_BUSY,
    "state": "draining",
    "drain": {
        "requested_at": "2026-01-31T12:00:00Z",
        "requested_by": "k3v8e0x9m5q7",
        "drained_at": None,
    },
}


def _one(example: dict[str, Any]) -> dict[int | str, dict[str, Any]]:
    """The answers of an operation on one worker."""
    found = {"model": Worker, "content": {"application/json": {"example": example}}}
    return {200: found, **responses(*_PROBLEMS, "not_found", "validation_failed")}


@router.get(
    "",
    operation_id="workers.list",
    summary="List the workers",
    response_class=Response,
    responses={
        200: {
            "model": Page[Worker],
            "content": {
                "application/json": {
                    "example": {"data": [_BUSY], "has_more": False, "next_cursor": None}
                }
            },
        },
        **responses(*_PROBLEMS),
    },
)
async def list_workers(resources: Res, _: Operator) -> Response:
    """Every live worker by name, on one page, and those told to rest when they come back."""
    return json_answer(await service.list_workers(resources))


@router.get(
    "/{worker}",
    operation_id="workers.get",
    summary="Get a worker",
    response_class=Response,
    responses=_one(_BUSY),
)
async def get(resources: Res, _: Operator, worker: WorkerName) -> Response:
    """`drain.drained_at` tells when a worker that was drained can be stopped."""
    return json_answer(await service.get(resources, worker))


@router.post(
    "/{worker}/drain",
    operation_id="workers.drain",
    summary="Let a worker take no more work",
    response_class=Response,
    responses=_one(_DRAINING),
)
async def drain(resources: Res, principal: Operator, worker: WorkerName) -> Response:
    """It finishes what it has and then idles, until it is resumed or stopped. May be repeated."""
    return json_answer(await service.drain(resources, principal, worker))


@router.post(
    "/{worker}/resume",
    operation_id="workers.resume",
    summary="Let a worker take work again",
    response_class=Response,
    responses=_one(_BUSY),
)
async def resume(resources: Res, _: Operator, worker: WorkerName) -> Response:
    """Takes back a drain, heard within a second. May be repeated."""
    return json_answer(await service.resume(resources, worker))
