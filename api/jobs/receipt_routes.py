"""HTTP of what receipts are good for: read one in an image, make an image again."""

from contextlib import nullcontext
from typing import Annotated

from fastapi import APIRouter, Depends, Query, Request, Response

from api.context import Res
from api.core.auth import ImagesRead, JobsWrite
from api.core.bodies import File, json_body
from api.core.errors import problems
from api.core.streams import MAX_WAIT, Wait
from api.images.routes import ImageId
from api.jobs.admission import REFUSALS
from api.jobs.idempotency import ACCEPTED_HEADERS, IdempotencyKey
from api.jobs.inspect import inspect as inspect_image
from api.jobs.prompt_filters import REFUSALS as FILTER_REFUSALS
from api.jobs.reproduce import reproduce as reproduce_image
from api.jobs.schemas import Inspection, Job, Reproduction
from api.jobs.upscale import UPSCALE_EXAMPLES, UpscaleSubmission
from api.jobs.upscale import upscale as upscale_image

router = APIRouter(prefix="/v1/images", tags=["images"])


@router.post(
    "/{image_id}/reproduce",
    operation_id="images.reproduce",
    summary="Make an image again and compare",
    responses={
        200: {"description": "Made and compared."},
        202: {
            "model": Reproduction,
            "description": "Not finished yet: POST to `Location` (`links.again`) to keep waiting.",
        },
    },
)
@problems("not_reproducible", "storage_unavailable", *REFUSALS, *FILTER_REFUSALS)
async def reproduce(
    *,
    request: Request,
    resources: Res,
    principal: JobsWrite,
    image_id: ImageId,
    job: Annotated[
        str | None, Query(description="Continue with this job instead of starting one.")
    ] = None,
    wait: Wait,
    response: Response,
) -> Reproduction:
    """Runs the receipt again, at the recorded rows, and waits up to 60 s (`Prefer: wait=n`).

    May be repeated: while a job that makes this image again is unfinished, no second one is begun.
    """
    seconds = MAX_WAIT if wait is None else wait
    with resources.waits.hold(principal.key_id, request.scope) if seconds else nullcontext():
        result = await reproduce_image(
            resources, principal, request, image_id=image_id, job_id=job, seconds=seconds
        )
    if wait is not None:
        response.headers["Preference-Applied"] = f"wait={wait}"
    if result.verdict is None:
        response.status_code = 202
        response.headers.update({"Location": result.links.again, "Retry-After": "1"})
    return result


@router.post(
    "/{image_id}/upscale",
    operation_id="images.upscale",
    summary="Make an image larger",
    status_code=202,
    response_class=Response,
    responses={
        202: {
            "model": Job,
            "description": "Accepted: the job is in the database and will not be lost.",
            "headers": ACCEPTED_HEADERS,
        },
    },
)
@problems("not_reproducible", *REFUSALS, *FILTER_REFUSALS)
async def upscale(
    *,
    resources: Res,
    principal: JobsWrite,
    image_id: ImageId,
    submission: Annotated[
        UpscaleSubmission, Depends(json_body(UpscaleSubmission, UPSCALE_EXAMPLES))
    ],
    idempotency_key: IdempotencyKey,
) -> Response:
    """Answers with a job of kind `upscale`, whose only image is the larger one.

    `lanczos` resamples the pixels and costs no device time; `latent` regenerates detail, with the
    image's own prompt, seed and settings.
    """
    answer = await upscale_image(resources, principal, image_id, submission, idempotency_key)
    return answer.response("1")


@router.post("/inspect", operation_id="images.inspect", summary="Read the receipt in an image")
@problems("image_refused", "receipt_missing", "decoder_unavailable")
async def inspect(resources: Res, principal: ImagesRead, file: File) -> Inspection:
    """Returns the receipt in a file that Darkroom made; the file is not kept."""
    return await inspect_image(resources, principal, file)
