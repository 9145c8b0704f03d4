"""HTTP of jobs, and of uploaded LoRAs."""

from contextlib import nullcontext
from dataclasses import replace
from typing import Annotated

from fastapi import APIRouter, Depends, Path, Query, Request, Response
from pydantic import AfterValidator

from api.context import Res
from api.core.auth import JobsRead, JobsWrite, LorasWrite
from api.core.bodies import LORA_SCHEMA, json_body, let_go, read_file_form
from api.core.errors import problems
from api.core.serialization import (
    CreatedAfter,
    CreatedBefore,
    IfNoneMatch,
    Page,
    Paging,
    etag_matches,
    no_nul,
)
from api.core.streams import Wait
from api.images import deletion
from api.images.schemas import Deleted, JobImage
from api.images.uploads import UPLOAD_REFUSAL
from api.jobs import loras as lora_service
from api.jobs import service
from api.jobs.admission import REFUSALS
from api.jobs.idempotency import ACCEPTED_HEADERS, IdempotencyKey
from api.jobs.options import IMAGE_LISTS
from api.jobs.prefer_wait import get_when_done, wait_for_accepted
from api.jobs.prompt_filters import REFUSALS as FILTER_REFUSALS
from api.jobs.schemas import Job, JobDryRun, JobStateName, UploadedLora
from api.jobs.serialize import etag_of
from api.jobs.submission import SUBMISSION_EXAMPLES, JobSubmission
from api.jobs.submit import dry_run as make_dry_run
from api.jobs.submit import submit as submit_job

router = APIRouter(prefix="/v1/jobs", tags=["jobs"])
gallery = APIRouter(prefix="/v1/jobs", tags=["jobs"])
loras = APIRouter(prefix="/v1/loras", tags=["models"])

_POLL_AFTER = "1"

JobId = Annotated[str, Path(description="`job_…`", examples=["job_01jd4zk3v8e0x9m5q7r2t6w8ya"])]
LoraPath = Annotated[str, Path(max_length=64, description="The name of the LoRA.")]
_READ_SUBMISSION = json_body(JobSubmission, SUBMISSION_EXAMPLES)


@router.post(
    "",
    operation_id="jobs.submit",
    summary="Submit a job",
    status_code=202,
    response_class=Response,
    responses={
        200: {
            "model": JobDryRun,
            "description": "With `dry_run`: a preview of the job. Nothing was made or kept.",
        },
        202: {
            "model": Job,
            "description": "Accepted: the job is in the database and will not be lost.",
            "headers": ACCEPTED_HEADERS
            | {
                "Preference-Applied": {
                    "schema": {"type": "string"},
                    "description": "The `wait` that was honored.",
                }
            },
        },
    },
)
@problems("not_found", "storage_unavailable", "decoder_unavailable", UPLOAD_REFUSAL, *REFUSALS)
@problems(*FILTER_REFUSALS)
async def submit(
    *,
    request: Request,
    resources: Res,
    principal: JobsWrite,
    submission: Annotated[JobSubmission, Depends(_READ_SUBMISSION)],
    idempotency_key: IdempotencyKey,
    seconds: Wait,
    dry_run: Annotated[
        bool, Query(description="Check it, and say its cost and ETA, without submitting it.")
    ] = False,
) -> Response:
    """Accepts a job in milliseconds; its seeds are in the answer, before the images exist."""
    if dry_run:
        planned = await make_dry_run(resources, principal, submission)
        return Response(planned.model_dump_json(), media_type="application/json")
    with resources.waits.hold(principal.key_id, request.scope) if seconds else nullcontext():
        job, answer = await submit_job(resources, principal, submission, idempotency_key)
        if job is None or seconds is None:
            return answer.response(_POLL_AFTER)
        let_go(request, submission, "init_image", "mask_image", *IMAGE_LISTS)
        job = await wait_for_accepted(resources, principal, request, job, seconds)
        answer = replace(answer, body=job.model_dump_json())
        return answer.response(_POLL_AFTER, {"Preference-Applied": f"wait={seconds}"})


@router.get(
    "/{job_id}",
    operation_id="jobs.get",
    summary="Get a job",
    response_model=Job,
    responses={
        200: {
            "headers": {
                "ETag": {
                    "schema": {"type": "string"},
                    "description": "Changes with the job; for `If-None-Match`.",
                }
            }
        },
        304: {"description": "Nothing has changed since the ETag in `If-None-Match`."},
    },
)
async def get(
    *,
    request: Request,
    response: Response,
    resources: Res,
    principal: JobsRead,
    job_id: JobId,
    if_none_match: IfNoneMatch = None,
    seconds: Wait,
) -> Job | Response:
    """The job's current state. `ETag` and `If-None-Match` make polling cheap."""
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
    response.headers.update(headers)
    return job


@router.get("", operation_id="jobs.list", summary="List jobs")
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
    paging: Paging,
) -> Page[Job]:
    """Your tenant's jobs, newest first."""
    states = tuple(sorted(set(state or ())))
    filters = service.JobFilters(states, session_id, created_after, created_before)
    return await service.list_page(resources, principal, filters, paging)


@router.post("/{job_id}/cancel", operation_id="jobs.cancel", summary="Cancel a job")
@problems("job_not_cancelable")
async def cancel(resources: Res, principal: JobsWrite, job_id: JobId) -> Job:
    """A queued job is canceled at once; a running one within a denoising step. May be repeated."""
    return await service.cancel(resources, principal, job_id)


@router.post("/{job_id}/retry", operation_id="jobs.retry", summary="Retry a job", status_code=202)
@problems("job_not_retryable", *REFUSALS)
async def retry(resources: Res, principal: JobsWrite, job_id: JobId, response: Response) -> Job:
    """Queues a failed, expired or canceled job again, with the same seeds and no deadlines."""
    job = await service.retry(resources, principal, job_id)
    response.headers.update({"Location": job.links.self, "Retry-After": _POLL_AFTER})
    return job


@router.get("/{job_id}/images", operation_id="jobs.images", summary="List a job's images")
async def images(resources: Res, principal: JobsRead, job_id: JobId) -> Page[JobImage]:
    """The finished images in the order of their seeds; at most a few, so on one page."""
    job = await service.get(resources, principal, job_id)
    return Page.whole(job.ready_images)


@gallery.delete("/{job_id}", operation_id="jobs.delete", summary="Delete a job")
@problems("job_not_finished")
async def delete_job(resources: Res, principal: JobsWrite, job_id: JobId) -> Deleted:
    """An ended job with its attempts, images and files. Cancel one that waits or runs first."""
    return await deletion.delete_job(resources, principal, job_id)


@loras.post(
    "",
    operation_id="loras.create",
    summary="Upload a LoRA",
    status_code=201,
    openapi_extra={"requestBody": LORA_SCHEMA},
)
@problems(
    *("lora_uploads_disabled", "lora_exists", "lora_refused", "upload_bytes_exceeded"),
    *("storage_unavailable", "malformed_request", "unsupported_media_type"),
)
async def create_lora(resources: Res, principal: LorasWrite, request: Request) -> UploadedLora:
    """A safetensors file in Kohya's or diffusers' format, for your tenant alone.

    Needs the scope `loras`, and an operator who has turned uploads on.
    """
    lora_service.check_enabled(resources)
    form, file = await read_file_form(request)
    return await lora_service.accept_lora(resources, principal, form, file)


@loras.delete(
    "/{lora_name}", operation_id="loras.delete", summary="Delete an uploaded LoRA", status_code=204
)
@problems("job_not_finished")
async def delete_lora(resources: Res, principal: LorasWrite, lora_name: LoraPath) -> Response:
    """One that your tenant uploaded. Images made with it stay, and cannot be reproduced."""
    await lora_service.delete_lora(resources, principal, lora_name)
    return Response(status_code=204)
