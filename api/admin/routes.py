"""HTTP of models, queues, workers, and API keys with what they have used."""

from typing import Annotated, Any

from fastapi import APIRouter, Depends, Path

from api.admin import keys as key_service
from api.admin import service, workers
from api.admin.schemas import (
    KEY_EXAMPLES,
    Key,
    KeyRequest,
    Lora,
    Model,
    NewKey,
    QueueDepth,
    Usage,
    Worker,
)
from api.context import Res
from api.core.auth import AdminRead, AdminWrite, JobsRead, Operator, authenticate
from api.core.bodies import json_body
from api.core.errors import problems
from api.core.principal import Principal
from api.core.serialization import Page, Paging
from shared.core.settings import darkroom_version

router = APIRouter(prefix="/v1")
models = APIRouter(prefix="/v1/models", tags=["models"])
loras = APIRouter(prefix="/v1/loras", tags=["models"])
keys = APIRouter(prefix="/v1", tags=["keys"])


def _example(answer: dict[str, Any]) -> dict[int | str, dict[str, Any]]:
    return {200: {"content": {"application/json": {"example": answer}}}}


@loras.get("", operation_id="loras.list", summary="List LoRAs")
async def list_loras(resources: Res, principal: JobsRead) -> Page[Lora]:
    """The catalogue's LoRAs and your tenant's, with trigger words and who has them loaded."""
    return await service.list_loras(resources, principal)


@models.get("", operation_id="models.list", summary="List models")
async def list_models(resources: Res, _: JobsRead) -> Page[Model]:
    """Each model's defaults, limits, schedulers and live workers."""
    return await service.list_models(resources)


# What a tenant needs to know, how many jobs go before its own and when that is done, is in the
# job.

_IDLE = {"model": "sd21", "queue_class": "bulk", "queued": 0, "running": 0}
_QUEUES: dict[str, Any] = {
    "data": [
        _IDLE
        | {"queue_class": "interactive", "queued": 3, "running": 8, "oldest_age_seconds": 1.482},
        _IDLE | {"oldest_age_seconds": None},
    ],
    "has_more": False,
    "next_cursor": None,
}


@router.get(
    "/queues",
    tags=["queues"],
    operation_id="queues.list",
    summary="List the queues",
    responses=_example(_QUEUES),
)
async def list_queues(resources: Res, _: Operator) -> Page[QueueDepth]:
    """Both queue classes of every model, on one page: how many jobs wait, for how long, and how
    many run.

    All tenants' jobs, counted in the database about once a second.
    """
    return await service.list_queues(resources)


# What a tenant needs to know, which models are served, is in GET /v1/models.

WorkerName = Annotated[
    str, Path(description="As in GET /v1/workers.", examples=["gpu-7-generate"], max_length=255)
]

_BUSY: dict[str, Any] = {
    "name": "gpu-7-generate",
    "kind": "gpu",
    "state": "busy",
    "device": "NVIDIA H200",
    "models": [
        {
            "name": "sd21",
            "state": "warm",
            "batch_size": 8,
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
    "version": darkroom_version(),
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


@router.get(
    "/workers",
    tags=["workers"],
    operation_id="workers.list",
    summary="List the workers",
    responses=_example({"data": [_BUSY], "has_more": False, "next_cursor": None}),
)
@problems("workers_unknown")
async def list_workers(resources: Res, _: Operator) -> Page[Worker]:
    """Every live worker by name, on one page, and those to be drained when they return."""
    return await workers.list_workers(resources)


@router.get(
    "/workers/{worker}",
    tags=["workers"],
    operation_id="workers.get",
    summary="Get a worker",
    responses=_example(_BUSY),
)
@problems("workers_unknown")
async def get_worker(resources: Res, _: Operator, worker: WorkerName) -> Worker:
    """`drain.drained_at` tells when a worker that was drained can be stopped."""
    return await workers.get(resources, worker)


@router.post(
    "/workers/{worker}/drain",
    tags=["workers"],
    operation_id="workers.drain",
    summary="Drain a worker",
    responses=_example(_DRAINING),
)
@problems("workers_unknown")
async def drain(resources: Res, principal: Operator, worker: WorkerName) -> Worker:
    """It finishes what it has and then idles, until it is resumed or stopped. May be repeated."""
    return await workers.drain(resources, principal, worker)


@router.post(
    "/workers/{worker}/resume",
    tags=["workers"],
    operation_id="workers.resume",
    summary="Resume a worker",
    responses=_example(_BUSY),
)
@problems("workers_unknown")
async def resume(resources: Res, _: Operator, worker: WorkerName) -> Worker:
    """Takes back a drain, heard within a second. May be repeated."""
    return await workers.resume(resources, worker)


@keys.post("/keys", operation_id="keys.create", summary="Create an API key", status_code=201)
async def create_key(
    resources: Res,
    principal: AdminWrite,
    request: Annotated[KeyRequest, Depends(json_body(KeyRequest, KEY_EXAMPLES))],
) -> NewKey:
    """The answer has the whole key, this once.

    It may do at most what the key that you send may do, and ends no later.
    """
    return await key_service.create(resources, principal, request)


@keys.get("/keys", operation_id="keys.list", summary="List API keys")
async def list_keys(resources: Res, principal: AdminRead, paging: Paging) -> Page[Key]:
    """Your tenant's keys without their secrets, those that have ended too."""
    return await key_service.list_page(resources, principal, paging)


@keys.delete(
    "/keys/{key_id}",
    operation_id="keys.revoke",
    summary="Revoke an API key",
    status_code=204,
    responses={204: {"description": "Revoked: here at once, everywhere within 5 s."}},
)
async def revoke_key(
    resources: Res,
    principal: AdminWrite,
    key_id: Annotated[str, Path(description="The public part of the key.")],
) -> None:
    """For good; may be repeated.

    You can revoke the key that you send, and those that may do no more and end no later.
    """
    await key_service.revoke(resources, principal, key_id)


@keys.get("/usage", operation_id="usage.get", summary="Get this key's usage and limits")
async def get_usage(
    resources: Res, principal: Annotated[Principal, Depends(authenticate)]
) -> Usage:
    """Any key may ask for itself. `used` is counted whether or not there is a limit."""
    return await service.usage(resources, principal)
