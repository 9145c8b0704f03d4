"""HTTP of keys, usage, models, queues and workers."""

from typing import Annotated, Any

from fastapi import APIRouter, Depends, Path, Query, Response

from api.admin import keys, service, workers
from api.admin.schemas import (
    KEY_EXAMPLES,
    Key,
    KeyRequest,
    Model,
    NewKey,
    QueueDepth,
    Usage,
    Worker,
)
from api.admin.service import list_models
from api.context import Res
from api.core.auth import AdminRead, AdminWrite, JobsRead, Operator, authenticate
from api.core.bodies import body_schema, json_body
from api.core.errors import responses
from api.core.principal import Principal
from api.core.serialization import Page, PageLimit, json_answer

keys_router = APIRouter(prefix="/v1/keys", tags=["keys"])


@keys_router.post(
    "",
    operation_id="keys.create",
    summary="Make an API key",
    status_code=201,
    response_class=Response,
    responses={
        201: {"model": NewKey},
        **responses(
            "insufficient_scope",
            "body_too_large",
            "unsupported_media_type",
            "malformed_json",
            "validation_failed",
            "database_unavailable",
        ),
    },
    openapi_extra=body_schema(KeyRequest, KEY_EXAMPLES),
)
async def create(
    resources: Res,
    principal: AdminWrite,
    asked: Annotated[KeyRequest, Depends(json_body(KeyRequest))],
) -> Response:
    """The answer has the whole key, this once.

    It may do at most what the key that you send may do, and ends no later.
    """
    return json_answer(await keys.create(resources, principal, asked), 201)


@keys_router.get(
    "",
    operation_id="keys.list",
    summary="List API keys",
    response_class=Response,
    responses={
        200: {"model": Page[Key]},
        **responses(
            "insufficient_scope", "validation_failed", "malformed_cursor", "database_unavailable"
        ),
    },
)
async def list_keys(
    resources: Res,
    principal: AdminRead,
    limit: PageLimit = 50,
    after: Annotated[str | None, Query(description="`next_cursor` of the page before.")] = None,
) -> Response:
    """Your tenant's keys without their secrets, those that have ended too."""
    return json_answer(await keys.list_page(resources, principal, limit, after))


@keys_router.delete(
    "/{key_id}",
    operation_id="keys.revoke",
    summary="Revoke an API key",
    status_code=204,
    response_class=Response,
    responses={
        204: {"description": "It has ended, here at once and everywhere within 5 s."},
        **responses("insufficient_scope", "not_found", "database_unavailable"),
    },
)
async def revoke(
    resources: Res,
    principal: AdminWrite,
    key_id: Annotated[str, Path(description="The public part of the key.")],
) -> Response:
    """For good; may be repeated.

    You can revoke the key that you send, and those that may do no more and end no later.
    """
    await keys.revoke(resources, principal, key_id)
    return Response(status_code=204)


usage_router = APIRouter(prefix="/v1/usage", tags=["keys"])


@usage_router.get(
    "",
    operation_id="usage.get",
    summary="What this key has used and has left",
    response_class=Response,
    responses={200: {"model": Usage}, **responses("database_unavailable")},
)
async def get_usage(
    resources: Res, principal: Annotated[Principal, Depends(authenticate)]
) -> Response:
    """Any key may ask for itself. `used` is counted whether or not there is a limit."""
    return json_answer(await service.usage(resources, principal))


models_router = APIRouter(prefix="/v1/models", tags=["models"])


@models_router.get(
    "",
    operation_id="models.list",
    summary="List models",
    response_class=Response,
    responses={200: {"model": Page[Model]}, **responses("insufficient_scope")},
)
async def models(resources: Res, _: JobsRead) -> Response:
    """What can be asked for: each model's defaults, limits, schedulers and live workers."""
    return json_answer(await list_models(resources))


# What a tenant needs to know, how many jobs go before its own and when that is done, is in the
# job.

queues_router = APIRouter(prefix="/v1/queues", tags=["queues"])


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


@queues_router.get(
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


# What a tenant needs to know, which models are served, is in GET /v1/models.

workers_router = APIRouter(prefix="/v1/workers", tags=["workers"])


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


@workers_router.get(
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
    return json_answer(await workers.list_workers(resources))


@workers_router.get(
    "/{worker}",
    operation_id="workers.get",
    summary="Get a worker",
    response_class=Response,
    responses=_one(_BUSY),
)
async def get_worker(resources: Res, _: Operator, worker: WorkerName) -> Response:
    """`drain.drained_at` tells when a worker that was drained can be stopped."""
    return json_answer(await workers.get(resources, worker))


@workers_router.post(
    "/{worker}/drain",
    operation_id="workers.drain",
    summary="Let a worker take no more work",
    response_class=Response,
    responses=_one(_DRAINING),
)
async def drain(resources: Res, principal: Operator, worker: WorkerName) -> Response:
    """It finishes what it has and then idles, until it is resumed or stopped. May be repeated."""
    return json_answer(await workers.drain(resources, principal, worker))


@workers_router.post(
    "/{worker}/resume",
    operation_id="workers.resume",
    summary="Let a worker take work again",
    response_class=Response,
    responses=_one(_BUSY),
)
async def resume(resources: Res, _: Operator, worker: WorkerName) -> Response:
    """Takes back a drain, heard within a second. May be repeated."""
    return json_answer(await workers.resume(resources, worker))
