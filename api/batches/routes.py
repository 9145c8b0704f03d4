"""HTTP of batches: make, look at, steer. What came of them is in `api.batches.outputs`."""

import re
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Header, Path, Query, Request, Response
from starlette.datastructures import UploadFile

from api.batches import files, intake, service
from api.batches.schemas import (
    SUBMISSION_EXAMPLES,
    Batch,
    BatchFile,
    BatchItem,
    BatchOptions,
    BatchStateName,
    BatchSubmission,
    BatchUpdate,
    DryRun,
    RetryResult,
)
from api.context import Res
from api.core.auth import require
from api.core.bodies import BODY_MODELS, FILE_SCHEMA, body_schema, json_body, read_file
from api.core.errors import Problem, responses
from api.core.principal import Principal
from api.core.quotas import REFUSALS, UPLOAD_REFUSAL
from api.core.serialization import Page, PageLimit, json_answer
from api.jobs.schemas import JobStateName

router = APIRouter(prefix="/v1/batches", tags=["batches"])

BatchesRead = Annotated[Principal, Depends(require("batches:read"))]
BatchesWrite = Annotated[Principal, Depends(require("batches:write"))]
BatchId = Annotated[
    str, Path(description="`batch_…`", examples=["batch_01jd4zk3v8e0x9m5q7r2t6w8ya"])
]
FileId = Annotated[str, Path(description="`upl_…`", examples=["upl_01jd4zk3v8e0x9m5q7r2t6w8ya"])]
After = Annotated[str | None, Query(description="`next_cursor` of the page before.")]

_IDEMPOTENCY_KEY = re.compile(r"[\x20-\x7e]{1,255}")
_POLL_AFTER = "2"
_READ = ("insufficient_scope", "not_found", "database_unavailable")
_CHANGE = (*_READ, "batch_has_ended")


def _submission_schema() -> dict[str, Any]:
    """JSON with the lines, or a multipart form: the file, and the options as its other fields."""
    BODY_MODELS.update((BatchSubmission, BatchOptions))
    schema = body_schema(BatchSubmission, SUBMISSION_EXAMPLES)
    types: dict[str, dict[str, Any]] = {
        "format": {"type": "string", "enum": ["jsonl", "csv"]},
        "session_id": {"type": "string"},
        "on_error": {"type": "string", "enum": ["reject", "skip"]},
        "defaults": {"type": "string", "contentMediaType": "application/json"},
        "metadata": {"type": "string", "contentMediaType": "application/json"},
        "webhook": {"type": "string", "contentMediaType": "application/json"},
        "templates": {"type": "boolean"},
        "template": {"type": "string"},
        "columns": {"type": "string", "contentMediaType": "application/json"},
        "priority": {"type": "integer"},
        "start_within": {"type": "number"},
        "finish_within": {"type": "number"},
    }
    fields = {
        name: {**kind, "description": BatchSubmission.model_fields[name].description}
        for name, kind in types.items()
    }
    fields["file"] = {
        "type": "string",
        "format": "binary",
        "description": "JSONL or CSV; gzip too.",
    }
    schema["requestBody"]["content"]["multipart/form-data"] = {
        "schema": {"type": "object", "required": ["file"], "properties": fields}
    }
    return schema


@router.post(
    "",
    operation_id="batches.create",
    summary="Make a batch, or see what it would be",
    status_code=202,
    response_class=Response,
    responses={
        200: {"model": DryRun, "description": "With `dry_run`: what the batch would be."},
        202: {
            "model": Batch,
            "description": "Accepted: all jobs are in the ledger and will not be lost.",
            "headers": {
                "Location": {"schema": {"type": "string"}, "description": "The batch."},
                "Retry-After": {"schema": {"type": "integer"}, "description": "Poll after."},
                "Idempotency-Replayed": {
                    "schema": {"type": "boolean"},
                    "description": "true: this is the original answer to this key.",
                },
            },
        },
        **responses(
            "malformed_request",
            "insufficient_scope",
            "not_found",
            "object_missing",
            "body_too_large",
            "unsupported_media_type",
            "malformed_json",
            "validation_failed",
            "batch_rejected",
            "malformed_idempotency_key",
            "idempotency_key_reuse",
            "database_unavailable",
            "storage_unavailable",
            *REFUSALS,
        ),
    },
    openapi_extra=_submission_schema(),
)
async def create(
    *,
    request: Request,
    resources: Res,
    principal: BatchesWrite,
    dry_run: Annotated[bool, Query(description="Validate and count; keep nothing.")] = False,
    idempotency_key: Annotated[
        str | None,
        Header(description="1 to 255 printable characters; a retry gets the original answer."),
    ] = None,
) -> Response:
    """Up to 50,000 lines and 100 MB. Every line is checked before anything runs.

    A line is a JSON object with the fields of POST /v1/jobs and `custom_id`; `matrix` and `zip`
    (objects of lists) and `{a|b}` in prompts make several jobs of it. With `on_error: reject` one
    bad line refuses the file: 422, and a failed batch keeps the report of all errors.
    """
    if idempotency_key is not None and not _IDEMPOTENCY_KEY.fullmatch(idempotency_key):
        raise Problem("malformed_idempotency_key")
    received = await intake.receive(request, resources, principal, idempotency_key)
    with received.opened:
        if dry_run:
            shown = await service.estimate(
                resources, principal, received.submission, received.lines
            )
            return json_answer(shown)
        accepted = await service.submit(resources, principal, received.submission, received.lines)
    headers = {"Location": accepted.location, "Retry-After": _POLL_AFTER}
    if accepted.is_replay:
        headers["Idempotency-Replayed"] = "true"
    return Response(accepted.body, 202, headers, "application/json")


@router.get(
    "",
    operation_id="batches.list",
    summary="List batches",
    response_class=Response,
    responses={
        200: {"model": Page[Batch]},
        **responses(
            "insufficient_scope", "validation_failed", "malformed_cursor", "database_unavailable"
        ),
    },
)
async def list_batches(
    resources: Res,
    principal: BatchesRead,
    state: Annotated[
        list[BatchStateName] | None,
        Query(description="Only batches in this state. May be repeated."),
    ] = None,
    limit: PageLimit = 50,
    after: After = None,
) -> Response:
    """Your tenant's batches, newest first."""
    states = tuple(sorted(set(state or ())))
    return json_answer(await service.list_page(resources, principal, states, limit, after))


@router.post(
    "/files",
    operation_id="batches.files.create",
    summary="Send a file ahead",
    status_code=201,
    response_class=Response,
    responses={
        201: {"model": BatchFile},
        **responses(
            "malformed_request",
            "insufficient_scope",
            "body_too_large",
            "unsupported_media_type",
            "validation_failed",
            UPLOAD_REFUSAL,
            "database_unavailable",
            "storage_unavailable",
        ),
    },
    openapi_extra=FILE_SCHEMA,
)
async def create_file(
    resources: Res, principal: BatchesWrite, file: Annotated[UploadFile, Depends(read_file)]
) -> Response:
    """JSONL or CSV, gzipped or not, up to 100 MB; give its id as `upload_id` of a batch."""
    kept = await files.keep(resources, principal, file)
    return json_answer(kept, 201, {"Location": f"/v1/batches/files/{kept.id}"})


@router.get(
    "/files/{file_id}",
    operation_id="batches.files.get",
    summary="Get a file",
    response_class=Response,
    responses={200: {"model": BatchFile}, **responses(*_READ)},
)
async def get_file(resources: Res, principal: BatchesRead, file_id: FileId) -> Response:
    """What is known of a file that was sent ahead."""
    return json_answer(await files.get(resources, principal, file_id))


@router.delete(
    "/files/{file_id}",
    operation_id="batches.files.delete",
    summary="Delete a file",
    status_code=204,
    response_class=Response,
    responses=responses(*_READ),
)
async def delete_file(resources: Res, principal: BatchesWrite, file_id: FileId) -> Response:
    """Batches that were made of it stay. Files are also deleted after a week."""
    await files.delete(resources, principal, file_id)
    return Response(status_code=204)


@router.get(
    "/{batch_id}",
    operation_id="batches.get",
    summary="Get a batch",
    response_class=Response,
    responses={200: {"model": Batch}, **responses(*_READ)},
)
async def get(resources: Res, principal: BatchesRead, batch_id: BatchId) -> Response:
    """State, exact counts, rate and ETA."""
    batch = await service.get(resources, principal, batch_id)
    headers = {} if batch.finished_at else {"Retry-After": _POLL_AFTER}
    return json_answer(batch, headers=headers)


@router.patch(
    "/{batch_id}",
    operation_id="batches.update",
    summary="Change a batch's priority",
    response_class=Response,
    responses={
        200: {"model": Batch},
        **responses(
            *_CHANGE,
            "body_too_large",
            "unsupported_media_type",
            "malformed_json",
            "validation_failed",
        ),
    },
    openapi_extra=body_schema(BatchUpdate),
)
async def update(
    resources: Res,
    principal: BatchesWrite,
    batch_id: BatchId,
    asked: Annotated[BatchUpdate, Depends(json_body(BatchUpdate))],
) -> Response:
    """Counts for the jobs that are not yet handed to workers."""
    return json_answer(await service.set_priority(resources, principal, batch_id, asked.priority))


@router.post(
    "/{batch_id}/pause",
    operation_id="batches.pause",
    summary="Pause a batch",
    response_class=Response,
    responses={200: {"model": Batch}, **responses(*_CHANGE)},
)
async def pause(resources: Res, principal: BatchesWrite, batch_id: BatchId) -> Response:
    """Running jobs end; no other starts until it is resumed. Deadlines go on counting."""
    return json_answer(await service.set_paused(resources, principal, batch_id, True))


@router.post(
    "/{batch_id}/resume",
    operation_id="batches.resume",
    summary="Resume a batch",
    response_class=Response,
    responses={200: {"model": Batch}, **responses(*_CHANGE)},
)
async def resume(resources: Res, principal: BatchesWrite, batch_id: BatchId) -> Response:
    """The batch goes on where it stood."""
    return json_answer(await service.set_paused(resources, principal, batch_id, False))


@router.post(
    "/{batch_id}/cancel",
    operation_id="batches.cancel",
    summary="Cancel a batch",
    response_class=Response,
    responses={200: {"model": Batch}, **responses(*_CHANGE)},
)
async def cancel(resources: Res, principal: BatchesWrite, batch_id: BatchId) -> Response:
    """Waiting jobs are canceled at once, running ones within a denoising step."""
    return json_answer(await service.cancel(resources, principal, batch_id))


@router.post(
    "/{batch_id}/retry-failed",
    operation_id="batches.retry_failed",
    summary="Retry what failed",
    status_code=202,
    response_class=Response,
    responses={
        202: {"model": RetryResult},
        **responses(*_READ, "nothing_to_retry", *REFUSALS),
    },
)
async def retry_failed(resources: Res, principal: BatchesWrite, batch_id: BatchId) -> Response:
    """Failed and expired jobs are queued again with their seeds; what succeeded stays."""
    result = await service.retry_failed(resources, principal, batch_id)
    headers = {"Location": result.batch.links.self, "Retry-After": _POLL_AFTER}
    return json_answer(result, 202, headers)


@router.get(
    "/{batch_id}/items",
    operation_id="batches.items",
    summary="List a batch's jobs",
    response_class=Response,
    responses={
        200: {"model": Page[BatchItem]},
        **responses(*_READ, "validation_failed", "malformed_cursor"),
    },
)
async def items(
    *,
    resources: Res,
    principal: BatchesRead,
    batch_id: BatchId,
    state: Annotated[
        list[JobStateName] | None,
        Query(description="Only jobs in this state. May be repeated."),
    ] = None,
    custom_id: Annotated[
        str | None, Query(max_length=80, description="Only the job with this `custom_id`.")
    ] = None,
    limit: PageLimit = 50,
    after: After = None,
) -> Response:
    """In the order of the file's lines, with their images so far."""
    chosen = service.Items(tuple(sorted(set(state or ()))), custom_id)
    page = await service.list_items(
        resources, principal, batch_id, chosen, limit=limit, after=after
    )
    return json_answer(page)
