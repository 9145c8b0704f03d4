"""HTTP of what came of a batch: results, errors, archive, contact sheet."""

from collections.abc import AsyncIterator
from contextlib import nullcontext
from typing import Annotated

from fastapi import APIRouter, Depends, Query, Request, Response
from fastapi.responses import StreamingResponse

from api.batches.exports import draw_contact_sheet, stream_archive
from api.batches.results import stream_errors, stream_results
from api.batches.routes import BatchesRead, BatchId
from api.batches.service import find
from api.context import Res, Resources, parse_id
from api.core.errors import Problem, problems
from api.core.principal import Principal
from api.core.streams import while_key_lives
from shared.batches.models import Batch

router = APIRouter(prefix="/v1/batches", tags=["batches"])

_JSONL = "application/jsonl"

Follow = Annotated[
    bool,
    Query(description="Keep the stream open and send results until the batch ends."),
]


async def _slot_while_following(
    request: Request, resources: Res, principal: BatchesRead, follow: Follow = True
) -> AsyncIterator[None]:
    """An answer that stays open is one of the key's streams."""
    with resources.streams.hold(principal.key_id, request.scope) if follow else nullcontext():
        yield


@router.get(
    "/{batch_id}/results",
    operation_id="batches.results",
    summary="Stream a batch's results",
    response_class=StreamingResponse,
    dependencies=[Depends(_slot_while_following)],
    responses={
        200: {"content": {_JSONL: {}}, "description": "A JSON object for each job that ended."}
    },
)
@problems("too_many_streams")
async def results(
    resources: Res, principal: BatchesRead, batch_id: BatchId, follow: Follow = True
) -> Response:
    """`custom_id`, `line`, `job_id`, `state`, `seeds`, `images` with URLs and receipts, `error`.

    In the order in which the jobs end. While the batch runs the answer stays open, for ten
    minutes at most, with empty lines when there is nothing new.
    """
    batch = await _find(resources, principal, batch_id)
    lines = while_key_lives(
        resources, principal, stream_results(resources, principal, batch.id, follow=follow)
    )
    return StreamingResponse(lines, media_type=_JSONL)


@router.get(
    "/{batch_id}/errors",
    operation_id="batches.errors",
    summary="Stream a batch's errors",
    response_class=StreamingResponse,
    responses={200: {"content": {_JSONL: {}}, "description": "A JSON object for each error."}},
)
async def errors(resources: Res, principal: BatchesRead, batch_id: BatchId) -> Response:
    """First what validation found (`type: validation`), then jobs without success (`type: job`).

    Each has `line`, `custom_id`, `pointer`, `code` and `message`.
    """
    batch = await _find(resources, principal, batch_id)
    return StreamingResponse(stream_errors(resources, principal, batch.id), media_type=_JSONL)


@router.get(
    "/{batch_id}/archive",
    operation_id="batches.archive",
    summary="Download a batch's images",
    response_class=StreamingResponse,
    responses={200: {"content": {"application/zip": {}}, "description": "The images made so far."}},
)
@problems("storage_unavailable")
async def archive(resources: Res, principal: BatchesRead, batch_id: BatchId) -> Response:
    """A ZIP of `custom_id_seed.png`, made while it is sent."""
    batch = await _find(resources, principal, batch_id)
    return StreamingResponse(
        stream_archive(resources, principal, batch),
        media_type="application/zip",
        headers={"Content-Disposition": f'attachment; filename="{batch_id}.zip"'},
    )


@router.get(
    "/{batch_id}/contact-sheet",
    operation_id="batches.contact_sheet",
    summary="Get a batch's contact sheet",
    response_class=Response,
    responses={200: {"content": {"image/webp": {}}, "description": "Thumbnails with their names."}},
)
@problems("storage_unavailable")
async def contact_sheet(
    resources: Res,
    principal: BatchesRead,
    batch_id: BatchId,
    limit: Annotated[int, Query(ge=1, le=300, description="Images on the sheet.")] = 100,
    columns: Annotated[int, Query(ge=1, le=20, description="Columns of the sheet.")] = 10,
) -> Response:
    """One WebP of the first images made so far, in the order of the lines. 404 before any."""
    batch = await _find(resources, principal, batch_id)
    sheet = await draw_contact_sheet(resources, principal, batch, limit=limit, columns=columns)
    if sheet is None:
        raise Problem("not_found", "The batch has no image yet.")
    return Response(sheet, media_type="image/webp")


async def _find(resources: Resources, principal: Principal, batch_id: str) -> Batch:
    async with resources.tenant_transaction(principal) as session:
        return await find(session, principal, parse_id("batch", batch_id, "batch"))
