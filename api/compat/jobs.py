"""What the façades share: a body that waits, a job from their fields, its end, its images."""

import base64
import hashlib
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from typing import Annotated, Any, TypeVar

from fastapi import Depends, Request, Response
from pydantic import BaseModel

from api.context import Res, Resources
from api.core.auth import JobsWrite
from api.core.bodies import checked
from api.core.errors import Problem, problems
from api.core.fairness import on_thread
from api.core.principal import Principal
from api.images.service import read_object
from api.images.uploads import UPLOAD_REFUSAL
from api.jobs import service as jobs
from api.jobs.admission import REFUSALS
from api.jobs.idempotency import IdempotentRequest
from api.jobs.prompt_filters import REFUSALS as FILTER_REFUSALS
from api.jobs.schemas import Job
from api.jobs.submission import JobSubmission
from api.jobs.submit import submit
from shared.core.errors import Filtered
from shared.core.ids import decode_id
from shared.images import queries
from shared.images.models import Image

WAIT_SECONDS = 590
"""OpenAI's SDK and LiteLLM give up after 600; so do many proxies."""
GENERATION_REFUSALS = (
    *("not_found", "storage_unavailable", "decoder_unavailable", "object_missing"),
    *("generation_failed", "job_stopped", "job_not_done", UPLOAD_REFUSAL, *REFUSALS),
    *FILTER_REFUSALS,
)
"""What a request that waits for its images can be answered with."""

Body = TypeVar("Body")


def held(
    read: Callable[..., Awaitable[Body]], is_stream: Callable[[Body], bool] = lambda _: False
) -> Callable[..., Any]:
    """A dependency: the body; holds one of the key's waits or streams as long as the answer
    lasts."""

    @problems("too_many_streams", "too_many_waits")
    async def hold(
        *,
        request: Request,
        resources: Res,
        principal: JobsWrite,
        body: Annotated[Any, Depends(read)],
    ) -> AsyncIterator[Body]:
        places = resources.streams if is_stream(body) else resources.waits
        with places.hold(principal.key_id, request.scope):
            yield body

    return hold


def to_job(fields: Mapping[str, Any]) -> JobSubmission:
    """The job of these fields; None is what is not given.

    Raises:
        Problem: they break a rule of jobs.
    """
    given = {name: value for name, value in fields.items() if value is not None}
    return checked(JobSubmission, given)


def meaning_of(operation: str, body: BaseModel) -> bytes:
    """The fingerprint of a request as it was sent, whatever the order or the spacing of its JSON:
    what job it means may be otherwise at a retry. To be made on a thread, as it may hold images."""
    text = json.dumps(body.model_dump(mode="json", exclude_unset=True), sort_keys=True)
    return hashlib.sha256(f"{operation}\n{text}".encode("ascii")).digest()


async def find_earlier(
    resources: Resources, principal: Principal, sent: IdempotentRequest
) -> Job | None:
    """The job of an earlier request with this idempotency key, as it is now.

    Raises:
        Problem: the key was used for another request, or 404 when the job was deleted.
    """
    answer = await sent.find_earlier(resources, principal)
    if answer is None:
        return None
    return await jobs.get(resources, principal, Job.model_validate_json(answer.body).id)


async def submit_or_join(
    resources: Resources,
    principal: Principal,
    submission: JobSubmission,
    sent: IdempotentRequest = IdempotentRequest(None, b""),  # noqa: B008 - frozen
) -> tuple[Job, bool]:
    """Submit the job, or find the one of its idempotency key as it is now; and whether it is that.

    Raises:
        Problem: as of `submit`.
    """
    job, answer = await submit(
        resources, principal, submission, sent.key, joins=sent.joins, meaning=sent.fingerprint
    )
    if job is not None:
        return job, False
    return await jobs.get(resources, principal, Job.model_validate_json(answer.body).id), True


def check_ended(job: Job) -> None:
    """Return if the job has succeeded.

    Raises:
        Problem: it has not; named so that the client asks no second time.
    """
    if job.state == "succeeded":
        return
    if job.finished_at is None:
        raise Problem("job_not_done", f"{job.id} is still {job.state}; poll {job.links.self}")
    if job.state in ("canceled", "expired"):
        raise Problem("job_stopped", f"{job.id} was {job.state}.")
    if job.error is not None and job.error.code == Filtered.code:
        raise Problem("refused_by_filter", f"{job.id}: {job.error.message}")
    why = f": {job.error.message or job.error.code}" if job.error is not None else "."
    raise Problem("generation_failed", f"{job.id} failed{why}")


async def find_images(resources: Resources, principal: Principal, job: Job) -> list[Image]:
    """The job's finished images, in the order of their seeds."""
    async with resources.tenant_transaction(principal) as session:
        statement = queries.list_images_of_jobs([decode_id("job", job.id)])
        return list((await session.scalars(statement)).all())


async def read_file(resources: Resources, image: Image) -> str:
    """An image's file, in base64.

    Raises:
        Problem: 404 when it was deleted, 503 when storage is unavailable.
    """
    stored = await read_object(resources, image.s3_key)
    return await on_thread(encode, stored.body)


def encode(data: bytes) -> str:
    """base64, as JSON holds it."""
    return base64.b64encode(data).decode("ascii")


def json_answer(content: BaseModel, status: int, headers: dict[str, str]) -> Response:
    """An answer that may be large: to be made on a thread."""
    body = content.model_dump_json(exclude_none=True)
    return Response(body, status, headers, "application/json")
