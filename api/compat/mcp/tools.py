"""The tools: what each takes, what scope it needs, what it does."""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

from mcp_types import CallToolResult, Tool, ToolAnnotations

from api.admin import service as admin
from api.batches import service as batches
from api.batches.file_formats import read_list
from api.batches.request import BatchRequest
from api.batches.schemas import Batch, BatchSubmission
from api.compat.mcp import arguments as inputs
from api.compat.mcp import results as outputs
from api.compat.mcp.arguments import DEFAULT_WAIT, SESSION, schema_of, validated
from api.compat.mcp.calls import Call
from api.context import parse_id
from api.core.bodies import RequestModel
from api.core.errors import Problem
from api.core.serialization import AnswerModel, PageRequest
from api.images import service as images
from api.jobs import service as jobs
from api.jobs.idempotency import IdempotentRequest
from api.jobs.reproduce import reproduce
from api.jobs.schemas import Reproduction
from api.jobs.submission import JobSubmission
from api.jobs.submit import submit
from api.search import image_similarity
from api.search import service as search
from shared.search.ranking import Filters

Run = Callable[[Call, Any], Awaitable[CallToolResult]]


@dataclass(frozen=True)
class OwnTool:
    """One tool; its description is the docstring of what it runs."""

    name: str
    scope: str
    arguments: type[RequestModel]
    answer: type[AnswerModel]
    run: Run
    hints: ToolAnnotations

    def described(self) -> Tool:
        """As clients see it."""
        return Tool(
            name=self.name,
            title=self.name.replace("_", " ").capitalize(),
            description=" ".join((self.run.__doc__ or "").split()),
            input_schema=schema_of(self.arguments),
            output_schema=schema_of(self.answer, "serialization"),
            annotations=self.hints,
        )


TOOLS: dict[str, OwnTool] = {}
"""By name, in the order in which they are listed."""

_READS = ToolAnnotations(read_only_hint=True, open_world_hint=False)
_ADDS = ToolAnnotations(read_only_hint=False, destructive_hint=False, open_world_hint=False)
_STOPS = ToolAnnotations(read_only_hint=False, destructive_hint=True, idempotent_hint=True)


def tool(
    scope: str, arguments: type[RequestModel], answer: type[AnswerModel], hints: ToolAnnotations
) -> Callable[[Run], Run]:
    """Register a function as the tool of its name."""

    def register(run: Run) -> Run:
        name = run.__name__
        TOOLS[name] = OwnTool(name, scope, arguments, answer, run, hints)
        return run

    return register


@tool("jobs:write", inputs.GenerateImage, outputs.JobReport, _ADDS)
async def generate_image(call: Call, arguments: Any) -> CallToolResult:
    """Make one or more images from a text. The answer has previews, seeds and links to the files.
    The same seed and settings give the same image. list_models says what models, sizes and LoRAs
    there are."""
    return await _make(call, arguments.model_dump(exclude_unset=True))


@tool("jobs:write", inputs.EditImage, outputs.JobReport, _ADDS)
async def edit_image(call: Call, arguments: Any) -> CallToolResult:
    """Change an image, or make variations of it. `strength` says how far to leave it (0.3 little,
    0.8 much). Without a prompt, an image's own prompt and model are used. Files are sent to
    POST /v1/uploads of this server, not named by a path."""
    fields = arguments.model_dump(exclude_unset=True)
    fields["init_image"] = fields.pop("image")
    vars(arguments)["image"] = ""  # which may be large
    if fields.get("prompt") is None and fields["init_image"].startswith("img_"):
        row = await images.find(call.resources, call.principal, fields["init_image"])
        fields["prompt"] = row.receipt["prompt"]
        fields.setdefault("negative_prompt", row.receipt.get("negative_prompt"))
        fields.setdefault("model", row.receipt["model"]["name"])
    return await _make(call, fields)


async def _make(call: Call, fields: dict[str, Any]) -> CallToolResult:
    seconds = fields.pop("wait_seconds", DEFAULT_WAIT)
    submission = validated(JobSubmission, {"session_id": SESSION} | fields)
    fields.clear()
    with call.waiting(seconds):
        job, _answer = await submit(call.resources, call.principal, submission, None)
        assert job is not None  # noqa: S101 - without an idempotency key nothing is replayed
        del submission
        call.let_go_of_body()
        job = await call.wait_for_accepted(job, seconds)
        return await call.results.of_job(job, fails=True)


@tool("jobs:read", inputs.GetJob, outputs.JobReport, _READS)
async def get_job(call: Call, arguments: inputs.GetJob) -> CallToolResult:
    """A job's state, place in the queue, progress and images; waits for its end if asked to."""
    with call.waiting(arguments.wait_seconds):
        job = await jobs.get(call.resources, call.principal, arguments.job_id)
        if arguments.wait_seconds:
            job = await call.wait(job, arguments.wait_seconds)
        return await call.results.of_job(job)


@tool("jobs:write", inputs.OneJob, outputs.JobReport, _STOPS)
async def cancel_job(call: Call, arguments: inputs.OneJob) -> CallToolResult:
    """Cancel a job: a queued one at once, a running one within a denoising step."""
    job = await jobs.cancel(call.resources, call.principal, arguments.job_id)
    return await call.results.of_job(job)


@tool("jobs:read", inputs.ListJobs, outputs.JobList, _READS)
async def list_jobs(call: Call, arguments: inputs.ListJobs) -> CallToolResult:
    """Jobs, newest first."""
    listing = jobs.JobFilters(tuple(sorted(set(arguments.state))), arguments.session_id)
    paging = PageRequest(arguments.limit, arguments.after)
    page = await jobs.list_page(call.resources, call.principal, listing, paging)
    return await call.results.of_jobs(page.data, page.next_cursor)


@tool("search:read", inputs.SearchImages, outputs.SearchReport, _READS)
async def search_images(call: Call, arguments: inputs.SearchImages) -> CallToolResult:
    """Find images that were made before, by what they show or by similarity to another image;
    the newest without either. The answer has previews of the best."""
    filters = Filters(
        session_id=arguments.session_id, model=arguments.model, starred=arguments.starred
    )
    if arguments.query is not None and arguments.image_id is not None:
        raise Problem.invalid("/image_id", "conflict", "Give either query or image_id.")
    if arguments.query is None and arguments.image_id is None:
        paging = PageRequest(arguments.limit, arguments.after)
        page = await search.newest(call.resources, call.principal, filters, paging)
        return await call.results.of_hits(page.data, page.next_cursor)
    request = search.SearchRequest(arguments.query or "", filters, arguments.limit, arguments.after)
    if arguments.image_id is None:
        page = await search.search(call.resources, call.principal, request)
    else:
        page = await image_similarity.like_image(
            call.resources, call.principal, arguments.image_id, request
        )
    return await call.results.of_hits(page.data, page.next_cursor)


@tool("jobs:write", inputs.ReproduceImage, outputs.ReproductionReport, _ADDS)
async def reproduce_image(call: Call, arguments: inputs.ReproduceImage) -> CallToolResult:
    """Make an image again from its receipt and compare the two pixel by pixel."""
    seconds = arguments.wait_seconds
    with call.waiting(seconds):
        made = await compare(call, arguments.image_id, None)
        if made.verdict is None:
            job = await call.wait_for_accepted(made.job, seconds)
            if job.finished_at is not None:
                made = await compare(call, arguments.image_id, job.id)
        return await call.results.of_reproduction(made)


async def compare(call: Call, image_id: str, job_id: str | None) -> Reproduction:
    """Begin to make an image again, or say what came of the job that does."""
    return await reproduce(
        call.resources, call.principal, call.request, image_id=image_id, job_id=job_id, seconds=0
    )


@tool("batches:write", inputs.SubmitBatch, outputs.BatchReport, _ADDS)
async def submit_batch(call: Call, arguments: Any) -> CallToolResult:
    """Queue many jobs at once; they run after interactive ones. An item is a prompt, or an object
    with a job's fields. `{a|b}` in a prompt stands for several prompts, and an item's `matrix` (an
    object of lists) for all combinations. See get_batch for what becomes of it."""
    fields = {"session_id": SESSION} | arguments.model_dump(exclude_unset=True)
    batch = validated(BatchSubmission, fields)
    request = BatchRequest(
        batch, None, "json", IdempotentRequest(None, b""), read_list(batch.items or (), None)
    )
    answer = await batches.submit(call.resources, call.principal, request)
    return call.results.of_batch(Batch.model_validate_json(answer.body))


@tool("batches:read", inputs.OneBatch, outputs.BatchReport, _READS)
async def get_batch(call: Call, arguments: inputs.OneBatch) -> CallToolResult:
    """A batch's state and how many of its jobs and images are done. list_jobs has its jobs."""
    batch_id = parse_id("batch", arguments.batch_id, "batch")
    batch = await batches.get(call.resources, call.principal, batch_id)
    return call.results.of_batch(batch)


@tool("jobs:read", inputs.Nothing, outputs.ModelList, _READS)
async def list_models(call: Call, _: inputs.Nothing) -> CallToolResult:
    """Models with their defaults, limits and schedulers, and LoRAs with their trigger words."""
    models = await admin.list_models(call.resources)
    loras = await admin.list_loras(call.resources, call.principal)
    return call.results.of_models(models.data, loras.data)
