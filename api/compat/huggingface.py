"""Hugging Face's `InferenceClient(base_url=…).text_to_image`: `/hf`."""

from typing import Annotated, Any

from fastapi import APIRouter, Depends, Request, Response
from pydantic import Field

from api.compat.jobs import (
    GENERATION_REFUSALS,
    WAIT_SECONDS,
    check_ended,
    held,
    submit_or_join,
    to_job,
)
from api.context import Res
from api.core.auth import JobsWrite
from api.core.bodies import RequestModel, json_body, let_go
from api.core.errors import not_found, problems
from api.images.service import find, read_object
from api.jobs.prefer_wait import wait_until_done
from api.jobs.redis_events import START

router = APIRouter(tags=["huggingface"])


class TextToImage(RequestModel):
    """A request as `text_to_image` sends it."""

    inputs: str = Field(description="The prompt.")
    parameters: dict[str, Any] = Field(
        default_factory=dict,
        description="Any other field of a job; `num_inference_steps` is `steps`.",
    )


_EXAMPLES: dict[str, Any] = {
    "an image": {"inputs": "a red circle", "parameters": {"num_inference_steps": 20, "seed": 7}}
}


@router.post(
    "/hf",
    operation_id="huggingface.text_to_image",
    summary="Generate an image (Hugging Face format)",
    response_class=Response,
)
@problems(*GENERATION_REFUSALS, "image_refused")
async def text_to_image(
    request: Request,
    resources: Res,
    principal: JobsWrite,
    body: Annotated[TextToImage, Depends(held(json_body(TextToImage, _EXAMPLES)))],
) -> Response:
    """Waits for the job, ten minutes at most, and answers its first image's file."""
    fields = {**body.parameters, "prompt": body.inputs}
    steps = fields.pop("num_inference_steps", fields.get("steps"))
    submission = to_job(fields | {"steps": steps})
    fields.clear()
    job, _ = await submit_or_join(resources, principal, submission)
    del submission
    let_go(request, body, "parameters")
    job = await wait_until_done(
        resources, principal, request, job, after=START, seconds=WAIT_SECONDS
    )
    check_ended(job)
    image = next(iter(job.ready_images), None)
    if image is None:  # deleted meanwhile
        raise not_found("image")
    row = await find(resources, principal, image.id)
    stored = await read_object(resources, row.s3_key)
    return Response(stored.body, headers={"Location": job.links.self}, media_type=row.content_type)
