"""What tools answer: a small image to look at, links to whole files, and data for programs."""

import asyncio
import base64
import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any, Literal

from mcp_types import CallToolResult, ContentBlock, ImageContent, ResourceLink, TextContent
from pydantic import Field

from api.admin.schemas import Lora, Model
from api.batches.schemas import Batch, Counts, ImageCounts
from api.context import Resources
from api.core.errors import Problem
from api.core.principal import Principal
from api.core.serialization import AnswerModel, UtcTime
from api.images.schemas import Image as ImageAnswer
from api.images.service import content_url, read_object
from api.jobs.schemas import ErrorInfo, Job, JobStateName, JobWarning, Reproduction
from api.search.schemas import Hit
from shared.core.ids import decode_id, encode_id
from shared.core.storage import EXTENSIONS
from shared.images import queries
from shared.images.models import Image

_SHOWN = 4
"""Thumbnails in one answer: each takes a client's model about as much as a page of text."""


class ImageReport(AnswerModel):
    """A finished image."""

    id: str = Field(description="`img_…`")
    seed: int
    width: int = Field(description="Pixels.")
    height: int = Field(description="Pixels.")
    content_type: str
    resource: str = Field(description="The file, for resources/read; with `/receipt`, its receipt.")
    url: str = Field(description="Reads the file without a key for an hour.")


class JobReport(AnswerModel):
    """A job."""

    id: str = Field(description="`job_…`")
    state: JobStateName
    kind: Literal["txt2img", "img2img", "inpaint", "upscale"]
    model: str
    prompt: str
    session_id: str
    seeds: list[int]
    fraction: float = Field(description="How much is done, 0 to 1.")
    queue_position: int | None = Field(description="Jobs that go first; null unless queued.")
    done_by: datetime | None = Field(description="Half of such jobs are done by then.")
    error: ErrorInfo | None
    warnings: list[JobWarning]
    images: list[ImageReport] = Field(description="Empty until the job has succeeded.")


class JobList(AnswerModel):
    """Jobs, newest first."""

    jobs: list[JobReport]
    next_cursor: str | None = Field(description="Pass it as `after` for the next ones.")


class HitReport(AnswerModel):
    """An image that was found."""

    score: float | None = Field(description="0 to 1; null without a query.")
    prompt: str
    model: str
    session_id: str
    job_id: str
    image: ImageReport


class SearchReport(AnswerModel):
    """Images, best first."""

    hits: list[HitReport]
    next_cursor: str | None = Field(description="Pass it as `after` for the next ones.")


class ReproductionReport(AnswerModel):
    """How an image that was made again compares."""

    verdict: Literal["identical", "equivalent", "different"] | None = Field(
        description="Null until the job has ended: call again later."
    )
    max_pixel_difference: int | None = Field(description="0 to 255.")
    reason: str | None
    job: JobReport


class BatchReport(AnswerModel):
    """A batch."""

    id: str = Field(description="`batch_…`")
    state: str
    session_id: str | None
    counts: Counts
    images: ImageCounts
    fraction: float = Field(description="Jobs that have ended, 0 to 1.")
    eta: UtcTime | None
    finished_at: UtcTime | None


class ModelReport(AnswerModel):
    """A model with its defaults and limits."""

    name: str
    default: bool
    family: str | None
    default_width: int
    default_height: int
    max_width: int
    max_height: int
    size_multiple: int
    default_steps: int
    max_steps: int
    default_guidance_scale: float
    schedulers: list[str]
    served: bool | None = Field(description="Whether a live worker runs it; null: not known.")


class LoraReport(AnswerModel):
    """A LoRA."""

    name: str
    models: list[str] = Field(description="Models that may take it.")
    trigger_words: list[str]


class ModelList(AnswerModel):
    """What jobs can name."""

    models: list[ModelReport]
    loras: list[LoraReport]


class Results:
    """Makes answers for one request."""

    def __init__(self, resources: Resources, principal: Principal) -> None:
        self._resources = resources
        self._principal = principal

    async def of_job(self, job: Job, *, fails: bool = False) -> CallToolResult:
        """A job, with thumbnails of its images.

        Args:
            fails: whether a job that has not made its images is the tool's failure.
        """
        failed = fails and job.finished_at is not None and job.state != "succeeded"
        rows = await self._rows_of([job])
        content = await self._images(rows[job.id])
        if job.finished_at is None:
            hint = f"{job.id} has not ended. Call get_job with wait_seconds to wait for it."
            content.append(TextContent(text=hint))
        return _result(await self._job(job, rows), content, failed=failed)

    async def of_jobs(self, jobs: Sequence[Job], cursor: str | None) -> CallToolResult:
        """A list of jobs."""
        rows = await self._rows_of(jobs)
        reports = [await self._job(job, rows) for job in jobs]
        return _result(JobList(jobs=reports, next_cursor=cursor))

    async def of_hits(self, hits: Sequence[Hit], cursor: str | None) -> CallToolResult:
        """What a search found, with thumbnails of the best."""
        ids = [decode_id("img", hit.image.id) for hit in hits]
        async with self._resources.tenant_transaction(self._principal) as session:
            statement = queries.get_images(self._principal.tenant_id, ids)
            rows = {row.id: row for row in await session.scalars(statement)}
        found = [
            (hit, rows[row_id]) for hit, row_id in zip(hits, ids, strict=True) if row_id in rows
        ]
        reports = [
            HitReport.of(
                hit.image, score=hit.score, prompt=hit.prompt, image=await self._image(row)
            )
            for hit, row in found
        ]
        content = await self._images([row for _, row in found])
        return _result(SearchReport(hits=reports, next_cursor=cursor), content)

    async def of_reproduction(self, made: Reproduction) -> CallToolResult:
        """An image that was made again, with its thumbnail."""
        rows = await self._rows_of([made.job])
        report = ReproductionReport.of(made, job=await self._job(made.job, rows))
        return _result(report, await self._images(rows[made.job.id]))

    def of_batch(self, batch: Batch) -> CallToolResult:
        """A batch."""
        return _result(BatchReport.of(batch))

    def of_models(self, models: Sequence[Model], loras: Sequence[Lora]) -> CallToolResult:
        """What there is to make images with."""
        return _result(
            ModelList(
                models=list(map(ModelReport.of, models)), loras=list(map(LoraReport.of, loras))
            )
        )

    async def _job(self, job: Job, rows: Mapping[str, Sequence[Image]]) -> JobReport:
        return JobReport.of(
            job,
            fraction=job.progress.fraction if job.progress is not None else 0.0,
            done_by=job.eta.p50 if job.eta is not None else None,
            images=[await self._image(row) for row in rows[job.id]],
        )

    async def _rows_of(self, jobs: Sequence[Job]) -> Mapping[str, Sequence[Image]]:
        rows: dict[str, list[Image]] = {job.id: [] for job in jobs}
        ids = [decode_id("job", job.id) for job in jobs if job.images]
        if ids:
            async with self._resources.tenant_transaction(self._principal) as session:
                for row in await session.scalars(queries.list_images_of_jobs(ids)):
                    rows[encode_id("job", row.job_id)].append(row)
        return rows

    async def _image(self, row: Image) -> ImageReport:
        image_id = encode_id("img", row.id)
        return ImageReport.of(
            row,
            id=image_id,
            resource=uri_of(image_id),
            url=await content_url(self._resources, self._principal, row),
        )

    async def _images(self, rows: Sequence[Image]) -> list[ContentBlock]:
        thumbnails = await asyncio.gather(*map(self._thumbnail, rows[:_SHOWN]))
        return [*thumbnails, *(_link(row) for row in rows)]

    async def _thumbnail(self, row: Image) -> ContentBlock:
        try:
            stored = await read_object(self._resources, row.thumbnail_s3_key)
        except Problem as problem:
            return TextContent(
                text=f"No preview of {encode_id('img', row.id)}: {problem.kind.title}"
            )
        data = base64.b64encode(stored.body).decode("ascii")
        return ImageContent(data=data, mime_type="image/webp")


def uri_of(image_id: str) -> str:
    """The resource of an image's file."""
    return f"darkroom://images/{image_id}"


def link_to(image: ImageAnswer) -> dict[str, Any]:
    """What a resource list and a link say of an image."""
    return {
        "uri": uri_of(image.id),
        "name": f"{image.id}.{EXTENSIONS[image.content_type]}",
        "description": image.prompt[:200],
        "mime_type": image.content_type,
        "size": image.bytes,
    }


def _link(row: Image) -> ResourceLink:
    image_id = encode_id("img", row.id)
    return ResourceLink(
        uri=uri_of(image_id),
        name=f"{image_id}.{EXTENSIONS[row.content_type]}",
        title=f"Image with seed {row.seed}, {row.width} × {row.height}",
        mime_type=row.content_type,
        size=row.bytes,
    )


def _result(
    report: AnswerModel, content: Sequence[ContentBlock] = (), *, failed: bool = False
) -> CallToolResult:
    structured = report.model_dump(mode="json")
    # Clients that know no structured content get the same as text.
    text = TextContent(text=report.model_dump_json(exclude_none=True))
    return CallToolResult(content=[text, *content], structured_content=structured, is_error=failed)


def refused(problem: Problem) -> CallToolResult:
    """A problem, for the model to read and to act on: its stable code, and what is wrong."""
    document: dict[str, Any] = {"code": problem.kind.code, "status": problem.kind.status}
    document["detail"] = problem.detail or problem.kind.title
    if problem.errors:
        document["errors"] = [one.model_dump(exclude_none=True) for one in problem.errors]
    if (seconds := problem.headers.get("Retry-After")) is not None:
        document["retry_after"] = int(seconds)
    text = TextContent(text=json.dumps(document))
    return CallToolResult(content=[text], structured_content=document, is_error=True)
