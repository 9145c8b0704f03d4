"""HTTP of jobs."""

import re
from contextlib import nullcontext
from typing import Annotated

from fastapi import APIRouter, Depends, Header, Path, Query, Request, Response
from pydantic import AfterValidator

from api.context import Res
from api.core.auth import JobsRead, JobsWrite
from api.core.bodies import body_schema, json_body
from api.core.errors import Problem, responses
from api.core.quotas import REFUSALS, UPLOAD_REFUSAL
from api.core.serialization import (
    CreatedAfter,
    CreatedBefore,
    IfNoneMatch,
    Page,
    PageLimit,
    etag_matches,
    json_answer,
    no_nul,
)
from api.core.streams import parse_wait
from api.jobs import service
from api.jobs.dry_run import dry_run as make_dry_run
from api.jobs.schemas import (
    SUBMISSION_EXAMPLES,
    Job,
    JobDryRun,
    JobImage,
    JobStateName,
    JobSubmission,
)
from api.jobs.serialize import etag_of
from api.jobs.waiting import get_when_done, wait_for_accepted

router = APIRouter(prefix="/v1/jobs", tags=["jobs"])

_IDEMPOTENCY_KEY = re.compile(r"[\x20-\x7e]{1,255}")
_POLL_AFTER = "1"

JobId = Annotated[str, Path(description="`job_…`", examples=["job_01jd4zk3v8e0x9m5q7r2t6w8ya"])]
Prefer = Annotated[
    str | None,
    Header(description="`wait=n`: hold the answer until done, n ≤ 60 seconds."),
]


@router.post(
    "",
    operation_id="jobs.submit",
    summary="Submit a job",
    status_code=202,
    response_class=Response,
    responses={
        200: {
            "model": JobDryRun,
            "description": "With `dry_run`: what it would be. Nothing was made or kept.",
        },
        202: {
            "model": Job,
            "description": "Accepted: the job is in the ledger and will not be lost.",
            "headers": {
                "Location": {"schema": {"type": "string"}, "description": "The job."},
                "Retry-After": {"schema": {"type": "integer"}, "description": "Poll after."},
                "Idempotency-Replayed": {
                    "schema": {"type": "boolean"},
                    "description": "true: this is the original answer to this key.",
                },
                "Preference-Applied": {
                    "schema": {"type": "string"},
                    "description": "The `wait` that was honored.",
                },
            },
        },
        **responses(
            "insufficient_scope",
            "not_found",
            "body_too_large",
            "unsupported_media_type",
            "malformed_json",
            "validation_failed",
            "malformed_idempotency_key",
            "idempotency_key_reuse",
            "database_unavailable",
            "storage_unavailable",
            "decoder_unavailable",
            UPLOAD_REFUSAL,
            "too_many_waits",
            *REFUSALS,
        ),
    },
    openapi_extra=body_schema(JobSubmission, SUBMISSION_EXAMPLES),
)
async def submit(
    *,
    request: Request,
    resources: Res,
    principal: JobsWrite,
    asked: Annotated[JobSubmission, Depends(json_body(JobSubmission))],
    idempotency_key: Annotated[
        str | None,
        Header(description="1 to 255 printable characters; a retry gets the original answer."),
    ] = None,
    prefer: Prefer = None,  # noqa: ARG001 - documents the header that parse_wait reads
    dry_run: Annotated[
        bool, Query(description="Check it, and say its cost and ETA, without submitting it.")
    ] = False,
) -> Response:
    """Accepts a job in milliseconds; its seeds are in the answer, before the pictures exist."""
    if idempotency_key is not None and not _IDEMPOTENCY_KEY.fullmatch(idempotency_key):
        raise Problem("malformed_idempotency_key")
    if dry_run:
        return json_answer(await make_dry_run(resources, principal, asked))
    seconds = parse_wait(request)
    with resources.waits.hold(principal.key_id, request.scope) if seconds else nullcontext():
        accepted = await service.submit(resources, principal, asked, idempotency_key)
        headers = {"Location": accepted.location, "Retry-After": _POLL_AFTER}
        if accepted.job is None:
            headers["Idempotency-Replayed"] = "true"
        elif seconds is not None:
            headers["Preference-Applied"] = f"wait={seconds}"
            job = await wait_for_accepted(resources, principal, request, accepted.job, seconds)
            return json_answer(job, 202, headers)
    return Response(accepted.body, 202, headers, "application/json")


@router.get(
    "/{job_id}",
    operation_id="jobs.get",
    summary="Get a job",
    response_class=Response,
    responses={
        200: {
            "model": Job,
            "headers": {
                "ETag": {
                    "schema": {"type": "string"},
                    "description": "Changes with the job; for `If-None-Match`.",
                }
            },
        },
        304: {"description": "Nothing has changed since the ETag in `If-None-Match`."},
        **responses("insufficient_scope", "not_found", "too_many_waits", "database_unavailable"),
    },
)
async def get(
    *,
    request: Request,
    resources: Res,
    principal: JobsRead,
    job_id: JobId,
    if_none_match: IfNoneMatch = None,
    prefer: Prefer = None,  # noqa: ARG001 - documents the header that parse_wait reads
) -> Response:
    """The job as it stands. `ETag` and `If-None-Match` make polling cheap."""
    seconds = parse_wait(request)
    headers = {"Cache-Control": "private, no-cache"}
    if seconds:
        with resources.waits.hold(principal.key_id, request.scope):
            job = await get_when_done(resources, principal, request, job_id, seconds)
    else:
        job = await service.get(resources, principal, job_id)
    if seconds is not None:
        headers["Preference-Applied"] = f"wait={seconds}"
    headers["ETag"] = etag_of(job)
    if if_none_match is not None and etag_matches(if_none_match, headers["ETag"]):
        return Response(status_code=304, headers=headers)
    if job.finished_at is None:
        headers["Retry-After"] = _POLL_AFTER
    return json_answer(job, headers=headers)


@router.get(
    "",
    operation_id="jobs.list",
    summary="List jobs",
    response_class=Response,
    responses={
        200: {"model": Page[Job]},
        **responses(
            "insufficient_scope", "validation_failed", "malformed_cursor", "database_unavailable"
        ),
    },
)
async def list_jobs(
    *,
    resources: Res,
    principal: JobsRead,
    state: Annotated[
        list[JobStateName] | None, Query(description="Only jobs in this state. May be repeated.")
    ] = None,
    session_id: Annotated[
        Annotated[str, AfterValidator(no_nul)] | None,
        Query(max_length=64, description="Only jobs of this session."),
    ] = None,
    created_after: CreatedAfter = None,
    created_before: CreatedBefore = None,
    limit: PageLimit = 50,
    after: Annotated[str | None, Query(description="`next_cursor` of the page before.")] = None,
) -> Response:
    """Your tenant's jobs, newest first."""
    listing = service.Listing(
        tuple(sorted(set(state or ()))), session_id, created_after, created_before
    )
    return json_answer(await service.list_page(resources, principal, listing, limit, after))


@router.post(
    "/{job_id}/cancel",
    operation_id="jobs.cancel",
    summary="Cancel a job",
    response_class=Response,
    responses={
        200: {"model": Job},
        **responses(
            "insufficient_scope", "not_found", "job_not_cancelable", "database_unavailable"
        ),
    },
)
async def cancel(resources: Res, principal: JobsWrite, job_id: JobId) -> Response:
    """A queued job is canceled at once; a running one within a denoising step. May be repeated."""
    return json_answer(await service.cancel(resources, principal, job_id))


@router.post(
    "/{job_id}/retry",
    operation_id="jobs.retry",
    summary="Retry a job",
    status_code=202,
    response_class=Response,
    responses={
        202: {"model": Job},
        **responses(
            "insufficient_scope",
            "not_found",
            "job_not_retryable",
            "database_unavailable",
            *REFUSALS,
        ),
    },
)
async def retry(resources: Res, principal: JobsWrite, job_id: JobId) -> Response:
    """Queues a failed, expired or canceled job again, with the same seeds and no deadlines."""
    job = await service.retry(resources, principal, job_id)
    return json_answer(job, 202, {"Location": job.links.self, "Retry-After": _POLL_AFTER})


@router.get(
    "/{job_id}/images",
    operation_id="jobs.images",
    summary="List a job's images",
    response_class=Response,
    responses={
        200: {"model": Page[JobImage]},
        **responses("insufficient_scope", "not_found", "database_unavailable"),
    },
)
async def images(resources: Res, principal: JobsRead, job_id: JobId) -> Response:
    """The finished images in the order of their seeds; at most a few, so on one page."""
    job = await service.get(resources, principal, job_id)
    return json_answer(Page[JobImage](data=job.images, has_more=False, next_cursor=None))
