"""The MCP server: what clients call, answered by our services or refused with our codes."""

import base64
import json
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from mcp.server.lowlevel import Server
from mcp.shared.exceptions import MCPError
from mcp_types import (
    INTERNAL_ERROR,
    INVALID_PARAMS,
    BlobResourceContents,
    CallToolRequestParams,
    CallToolResult,
    EmptyResult,
    ListResourcesResult,
    ListResourceTemplatesResult,
    ListToolsResult,
    PaginatedRequestParams,
    ReadResourceRequestParams,
    ReadResourceResult,
    RequestParams,
    Resource,
    ResourceTemplate,
    TextResourceContents,
)

from api.admin import service as admin
from api.compat.mcp.arguments import validated
from api.compat.mcp.calls import TASKS, Answer, Call, Context
from api.compat.mcp.results import link_to, refused
from api.compat.mcp.tools import TOOLS, compare
from api.core.errors import Problem, not_found
from api.core.metrics import PROBLEMS
from api.core.serialization import PageRequest
from api.images import service as images
from api.jobs import service as jobs
from api.jobs.schemas import Job
from api.search import service as search
from shared.core.errors import StorageUnavailable
from shared.core.logging import get_logger
from shared.core.settings import darkroom_version
from shared.jobs.models import REPRODUCES
from shared.search.ranking import Filters

_log = get_logger(__name__)

_INSTRUCTIONS = (
    "Darkroom makes images with diffusion models, keeps them, and finds them again. Show users the "
    "images of an answer and their links. A job that has not ended continues: wait for it with "
    "get_job instead of making it again."
)
_POLL_MILLISECONDS = 1000
_LISTED = 50
"""Images on one page of the resources."""
_TEMPLATES = (
    ("images/{image_id}", "image", "An image's file.", None),
    ("images/{image_id}/receipt", "receipt", "How an image was made.", "application/json"),
    ("jobs/{job_id}", "job", "A job.", "application/json"),
)
_MODELS = "darkroom://models"
_JSON = "application/json"


class TaskParams(RequestParams):
    """Params of `tasks/get`, `tasks/update` and `tasks/cancel`."""

    task_id: str


def build_server() -> Server[Any]:
    """One server for all requests of a process: it keeps nothing of any."""
    logging.getLogger("mcp").setLevel(logging.WARNING)
    server: Server[Any] = Server(
        "darkroom",
        title="Darkroom",
        version=darkroom_version(),
        instructions=_INSTRUCTIONS,
        on_list_tools=_list_tools,
        on_call_tool=_call_tool,  # type: ignore[arg-type]  # the SDK does not know tasks yet
        on_list_resources=_list_resources,
        on_list_resource_templates=_list_templates,
        on_read_resource=_read_resource,
    )
    for name, handler in (
        ("get", _get_task),
        ("update", _update_task),
        ("cancel", _cancel_task),
    ):
        server.add_request_handler(f"tasks/{name}", TaskParams, handler)
    server.extensions[TASKS] = {}
    return server


async def _list_tools(context: Context, _: PaginatedRequestParams | None) -> ListToolsResult:
    """Those that the key may call."""
    principal = Call(context).principal
    return ListToolsResult(
        tools=[one.described() for one in TOOLS.values() if principal.may(one.scope)]
    )


async def _call_tool(context: Context, params: CallToolRequestParams) -> Answer:
    tool = TOOLS.get(params.name)
    if tool is None:
        raise MCPError(INVALID_PARAMS, f"There is no tool {params.name[:64]!r}.")
    call = Call(context)
    try:
        with _plainly():
            call.require(tool.scope)
            arguments = validated(tool.arguments, params.arguments or {})
            for sent in (params.arguments, (context.params or {}).get("arguments")):
                if isinstance(sent, dict):
                    sent.clear()  # an initial image is not to lie in memory until its job ends
            result = await tool.run(call, arguments)
    except Problem as problem:
        return refused(problem)
    return result if call.deferred is None else _task(call.deferred) | {"resultType": "task"}


@contextmanager
def _plainly() -> Iterator[None]:
    """Whatever fails within is a problem, which is counted.

    Raises:
        Problem: it failed.
    """
    try:
        yield
        return
    except Problem as problem:
        refusal = problem
    except StorageUnavailable:
        refusal = Problem("storage_unavailable")
    except MCPError:
        raise
    except Exception:
        _log.exception("mcp_request_failed")
        refusal = Problem("internal_error")
    PROBLEMS.labels(refusal.kind.code).inc()
    raise refusal


@contextmanager
def _answered() -> Iterator[None]:
    """The same for what is no tool: a problem is a JSON-RPC error that names its code."""
    try:
        with _plainly():
            yield
    except Problem as problem:
        code = INVALID_PARAMS if problem.kind.status < 500 else INTERNAL_ERROR
        data = {"code": problem.kind.code, "status": problem.kind.status}
        raise MCPError(code, problem.detail or problem.kind.title, data) from None


# Resources ---------------------------------------------------------------------------------


async def _list_resources(
    context: Context, params: PaginatedRequestParams | None
) -> ListResourcesResult:
    """The models, then images, newest first."""
    call = Call(context)
    after = params.cursor if params is not None else None
    listed = [] if after else [Resource(uri=_MODELS, name="models", mime_type=_JSON)]
    if not call.principal.may("search:read"):
        return ListResourcesResult(resources=listed)
    with _answered():
        paging = PageRequest(_LISTED, after)
        page = await search.newest(call.resources, call.principal, Filters(), paging)
        listed += [Resource(**link_to(hit.image)) for hit in page.data]
        return ListResourcesResult(resources=listed, next_cursor=page.next_cursor)


async def _list_templates(
    _: Context, __: PaginatedRequestParams | None
) -> ListResourceTemplatesResult:
    return ListResourceTemplatesResult(
        resource_templates=[
            ResourceTemplate(
                uri_template=f"darkroom://{path}", name=name, description=text, mime_type=kind
            )
            for path, name, text, kind in _TEMPLATES
        ]
    )


async def _read_resource(context: Context, params: ReadResourceRequestParams) -> ReadResourceResult:
    call, uri = Call(context), str(params.uri)
    contents: TextResourceContents | BlobResourceContents
    with _answered():
        match uri.removeprefix("darkroom://").split("/"):
            case ["models"]:
                call.require("jobs:read")
                models = await admin.list_models(call.resources)
                text = models.model_dump_json()
            case ["jobs", job_id]:
                call.require("jobs:read")
                text = (await jobs.get(call.resources, call.principal, job_id)).model_dump_json()
            case ["images", image_id, "receipt"]:
                call.require("images:read")
                row = await images.find(call.resources, call.principal, image_id)
                text = json.dumps(row.receipt)
            case ["images", image_id]:
                call.require("images:read")
                row = await images.find(call.resources, call.principal, image_id)
                stored = await images.read_object(call.resources, row.s3_key)
                blob = base64.b64encode(stored.body).decode("ascii")
                contents = BlobResourceContents(uri=uri, blob=blob, mime_type=row.content_type)
                return ReadResourceResult(contents=[contents])
            case _:
                raise not_found("resource")
        contents = TextResourceContents(uri=uri, text=text, mime_type=_JSON)
        return ReadResourceResult(contents=[contents])


# Tasks -------------------------------------------------------------------------------------


def _task(job: Job) -> dict[str, Any]:
    """A job as SEP-2663 has tasks: it lives as long as the job."""
    status = {"queued": "working", "running": "working", "canceled": "cancelled"}
    changed = job.finished_at or job.started_at or job.created_at
    done = f", {job.progress.fraction:.0%} done" if job.progress is not None else ""
    return {
        "taskId": job.id,
        "status": status.get(job.state, "completed"),
        "statusMessage": f"The job is {job.state}{done}.",
        "createdAt": job.created_at.isoformat(),
        "lastUpdatedAt": changed.isoformat(),
        "ttlMs": None,
        "pollIntervalMs": _POLL_MILLISECONDS,
    }


async def _get_task(context: Context, params: TaskParams) -> dict[str, Any]:
    """The task, with what the tool would have answered once the job has ended."""
    call = Call(context)
    with _answered():
        call.require("jobs:read")
        job = await jobs.get(call.resources, call.principal, params.task_id)
        task = _task(job)
        if task["status"] != "completed":
            return task
        try:
            result = await _result_of(call, job)
        except Problem as problem:
            result = refused(problem)
        dumped = result.model_dump(mode="json", by_alias=True, exclude_none=True)
        return task | {"result": dumped}


async def _result_of(call: Call, job: Job) -> CallToolResult:
    original = job.metadata.get(REPRODUCES)
    if original is None:
        return await call.results.of_job(job, fails=True)
    return await call.results.of_reproduction(await compare(call, original, job.id))


async def _update_task(context: Context, params: TaskParams) -> EmptyResult:
    """Jobs ask clients nothing, so there is nothing to do for one that exists."""
    call = Call(context)
    with _answered():
        call.require("jobs:write")
        await jobs.get(call.resources, call.principal, params.task_id)
        return EmptyResult()


async def _cancel_task(context: Context, params: TaskParams) -> EmptyResult:
    """Cancel the job; one that has ended stays as it is."""
    call = Call(context)
    with _answered():
        call.require("jobs:write")
        try:
            await jobs.cancel(call.resources, call.principal, params.task_id)
        except Problem as problem:
            if problem.kind.code != "job_not_cancelable":
                raise
        return EmptyResult()
