"""HTTP of batches: submit, get, change. Their results are in `api.batches.outputs`."""

from typing import Annotated, Any

from fastapi import APIRouter, Depends, Path, Query, Request, Response

from api.batches import files, service
from api.batches.request import receive
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
from api.context import Res, parse_id
from api.core.auth import require
from api.core.bodies import (
    BODY_MODELS,
    BODY_PROBLEMS,
    File,
    body_schema,
    file_field,
    json_body,
    multipart_schema,
)
from api.core.errors import problems
from api.core.principal import Principal
from api.core.serialization import Page, Paging
from api.images.uploads import UPLOAD_REFUSAL
from api.jobs.admission import REFUSALS
from api.jobs.idempotency import ACCEPTED_HEADERS, IdempotencyKey
from api.jobs.schemas import JobStateName

router = APIRouter(prefix="/v1/batches", tags=["batches"])

BatchesRead = Annotated[Principal, Depends(require("batches:read"))]
BatchesWrite = Annotated[Principal, Depends(require("batches:write"))]
BatchId = Annotated[
    str, Path(description="`batch_…`", examples=["batch_01jd4zk3v8e0x9m5q7r2t6w8ya"])
]
FileId = Annotated[str, Path(description="`upl_…`", examples=["upl_01jd4zk3v8e0x9m5q7r2t6w8ya"])]

_POLL_AFTER = "2"


def _submission_schema() -> dict[str, Any]:
    """JSON with the lines, or a multipart form: the file, and the options as its other fields."""
    BODY_MODELS.update((BatchSubmission, BatchOptions))
    schema = body_schema(BatchSubmission, SUBMISSION_EXAMPLES)
    types: dict[str, dict[str, Any]] = {
        "format": {"type": "string", "enum": ["jsonl", "csv"]},
        "name": {"type": "string"},
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
    fields["file"] = file_field("JSONL or CSV; gzip too.")
    form = multipart_schema("file", **fields)
    schema["requestBody"]["content"] |= form["content"]
    return schema


@router.post(
    "",
    operation_id="batches.create",
    summary="Create or preview a batch",
    status_code=202,
    response_class=Response,
    responses={
        200: {"model": DryRun, "description": "With `dry_run`: a preview of the batch."},
        202: {
            "model": Batch,
            "description": "Accepted: all jobs are in the database and will not be lost.",
            "headers": ACCEPTED_HEADERS,
        },
    },
    openapi_extra=_submission_schema(),
)
@problems(*BODY_PROBLEMS, "malformed_json", "malformed_request", "batch_rejected")
@problems("not_found", "object_missing", "storage_unavailable", "filter_unavailable", *REFUSALS)
async def create(
    *,
    request: Request,
    resources: Res,
    principal: BatchesWrite,
    dry_run: Annotated[bool, Query(description="Validate and count; keep nothing.")] = False,
    idempotency_key: IdempotencyKey,
) -> Response:
    """Up to 50,000 lines and 100 MB. Every line is checked before anything runs.

    A line is a JSON object with the fields of POST /v1/jobs and `custom_id`; `matrix` and `zip`
    (objects of lists) and `{a|b}` in prompts make several jobs of it. With `on_error: reject` one
    bad line refuses the file: 422, and a failed batch keeps the report of all errors.
    """
    batch = await receive(request, resources, principal, idempotency_key)
    with batch.opened:
        if dry_run:
            shown = await service.estimate(resources, principal, batch)
            return Response(shown.model_dump_json(), media_type="application/json")
        answer = await service.submit(resources, principal, batch)
    return answer.response(_POLL_AFTER)


@router.get("", operation_id="batches.list", summary="List batches")
async def list_batches(
    *,
    resources: Res,
    principal: BatchesRead,
    state: Annotated[
        list[BatchStateName] | None,
        Query(description="Only batches in this state. May be repeated."),
    ] = None,
    paging: Paging,
) -> Page[Batch]:
    """Your tenant's batches, newest first."""
    states = tuple(sorted(set(state or ())))
    return await service.list_page(resources, principal, states, paging)


@router.post(
    "/files", operation_id="batches.files.create", summary="Upload a batch file", status_code=201
)
@problems(UPLOAD_REFUSAL, "storage_unavailable")
async def create_file(
    resources: Res, principal: BatchesWrite, file: File, response: Response
) -> BatchFile:
    """JSONL or CSV, gzipped or not, up to 100 MB; give its id as `upload_id` of a batch."""
    kept = await files.keep(resources, principal, file)
    response.headers["Location"] = f"/v1/batches/files/{kept.id}"
    return kept


@router.get("/files/{file_id}", operation_id="batches.files.get", summary="Get a file")
async def get_file(resources: Res, principal: BatchesRead, file_id: FileId) -> BatchFile:
    """What is known of an uploaded batch file."""
    return await files.get(resources, principal, file_id)


@router.delete(
    "/files/{file_id}",
    operation_id="batches.files.delete",
    summary="Delete a file",
    status_code=204,
)
async def delete_file(resources: Res, principal: BatchesWrite, file_id: FileId) -> None:
    """Batches that were made of it stay. Files are also deleted after a week."""
    await files.delete(resources, principal, file_id)


@router.get("/{batch_id}", operation_id="batches.get", summary="Get a batch")
async def get(
    resources: Res, principal: BatchesRead, batch_id: BatchId, response: Response
) -> Batch:
    """State, exact counts, rate and ETA."""
    batch = await service.get(resources, principal, parse_id("batch", batch_id, "batch"))
    if batch.finished_at is None:
        response.headers["Retry-After"] = _POLL_AFTER
    return batch


@router.patch("/{batch_id}", operation_id="batches.update", summary="Change a batch's priority")
@problems("batch_has_ended")
async def update(
    resources: Res,
    principal: BatchesWrite,
    batch_id: BatchId,
    update: Annotated[BatchUpdate, Depends(json_body(BatchUpdate, {"next": {"priority": 9}}))],
) -> Batch:
    """Counts for the jobs that are not yet handed to workers."""
    return await service.set_priority(resources, principal, batch_id, update.priority)


@router.post("/{batch_id}/pause", operation_id="batches.pause", summary="Pause a batch")
@problems("batch_has_ended")
async def pause(resources: Res, principal: BatchesWrite, batch_id: BatchId) -> Batch:
    """Running jobs end; no other starts until it is resumed. Deadlines keep counting."""
    return await service.set_paused(resources, principal, batch_id, True)


@router.post("/{batch_id}/resume", operation_id="batches.resume", summary="Resume a batch")
@problems("batch_has_ended")
async def resume(resources: Res, principal: BatchesWrite, batch_id: BatchId) -> Batch:
    """The batch continues where it stopped."""
    return await service.set_paused(resources, principal, batch_id, False)


@router.post("/{batch_id}/cancel", operation_id="batches.cancel", summary="Cancel a batch")
@problems("batch_has_ended")
async def cancel(resources: Res, principal: BatchesWrite, batch_id: BatchId) -> Batch:
    """Waiting jobs are canceled at once, running ones within a denoising step."""
    return await service.cancel(resources, principal, batch_id)


@router.post(
    "/{batch_id}/retry-failed",
    operation_id="batches.retry_failed",
    summary="Retry a batch's failed jobs",
    status_code=202,
)
@problems("nothing_to_retry", *REFUSALS)
async def retry_failed(
    resources: Res, principal: BatchesWrite, batch_id: BatchId, response: Response
) -> RetryResult:
    """Failed and expired jobs are queued again with their seeds; what succeeded stays."""
    result = await service.retry_failed(resources, principal, batch_id)
    response.headers.update({"Location": result.batch.links.self, "Retry-After": _POLL_AFTER})
    return result


@router.get("/{batch_id}/items", operation_id="batches.items", summary="List a batch's jobs")
async def items(
    *,
    resources: Res,
    principal: BatchesRead,
    batch_id: BatchId,
    state: Annotated[
        list[JobStateName] | None, Query(description="Only jobs in this state. May be repeated.")
    ] = None,
    custom_id: Annotated[
        str | None, Query(max_length=80, description="Only the job with this `custom_id`.")
    ] = None,
    paging: Paging,
) -> Page[BatchItem]:
    """In the order of the file's lines, with their images so far."""
    chosen = service.Items(tuple(sorted(set(state or ()))), custom_id)
    return await service.list_items(resources, principal, batch_id, chosen, paging)
