"""HTTP of OpenAI's image API."""

from typing import Annotated, Any, BinaryIO, TypeVar

from fastapi import APIRouter, Depends, Path, Request, Response
from fastapi.sse import EventSourceResponse
from pydantic_core import from_json
from starlette.datastructures import UploadFile

from api.compat.jobs import (
    GENERATION_REFUSALS,
    WAIT_SECONDS,
    check_ended,
    encode,
    held,
    json_answer,
)
from api.compat.openai.schemas import (
    ImageEdit,
    ImageGeneration,
    Images,
    OpenAIModel,
    OpenAIModels,
)
from api.compat.openai.service import (
    find_model,
    read_images,
    serialize,
    serialize_model,
    submit_job,
)
from api.compat.openai.streaming import stream_images
from api.context import Res, Resources
from api.core.auth import JobsRead, JobsWrite, authenticate
from api.core.bodies import (
    BODY_PROBLEMS,
    EXAMPLE_IMAGE,
    body_schema,
    checked,
    json_body,
    let_go,
    media_type_of,
    parse,
    parse_form,
)
from api.core.errors import Problem, problems
from api.core.fairness import on_thread
from api.core.principal import Principal
from api.core.streams import Wait, while_key_lives
from api.jobs.idempotency import IdempotencyKey
from api.jobs.options import IMAGE_LISTS
from api.jobs.prefer_wait import wait_until_done
from api.jobs.redis_events import START

router = APIRouter(tags=["openai"])

T = TypeVar("T", list[Any], dict[str, Any])

_FORM_FIELDS = 64
_FORM_FIELD_BYTES = 128 * 1024
_MAX_FILES = 17
"""OpenAI's 16 images and a mask."""
_TEXTS = frozenset(
    (
        *("prompt", "negative_prompt", "model", "size", "quality", "response_format"),
        *("output_format", "background", "user", "safety_identifier", "moderation", "style"),
        *("complexity", "input_fidelity", "scheduler", "session_id", "init_image", "resize_mode"),
    )
)
"""Fields of a form that are texts; the others are JSON."""
_MEMBER_TEXTS = ("name", "image", "preprocess")
"""The same, of the objects in lists."""
_NO_JSON = {"True": True, "False": False, "None": None, "": None}
_LISTS = ("image",)
"""Fields that may come several times without brackets."""
_EXAMPLES: dict[str, Any] = {
    "an image": {"model": "dall-e-3", "prompt": "a red circle", "size": "auto", "seed": 7},
    "links": {"prompt": "a blue square", "n": 2, "quality": "low", "response_format": "url"},
}
_EDIT_EXAMPLES: dict[str, Any] = {
    "an image": {"prompt": "the same at night", "images": [{"image_url": EXAMPLE_IMAGE}]}
}
_EDIT_FORM = {
    "type": "object",
    "required": ["image", "prompt"],
    "properties": {
        "image": {"type": "string", "format": "binary", "description": "The image's file."},
        "prompt": {"type": "string", "description": "What the image should show."},
    },
}


async def _read_form(request: Request, max_bytes: int) -> ImageEdit:
    form = await parse_form(
        request, files=_MAX_FILES, fields=_FORM_FIELDS, field_bytes=_FORM_FIELD_BYTES
    )
    fields: dict[str, Any] = {}
    objects = set()
    for key, value in form.multi_items():
        name, bracket, part = key.removesuffix("]").partition("[")
        if isinstance(value, UploadFile):
            read: Any = await on_thread(_data_url, value.file, max_bytes)
        elif part.startswith("]["):
            read = value if part[2:] in _MEMBER_TEXTS else _from_text(value)
        else:
            read = value if part or name in _TEXTS else _from_text(value)
        if part.startswith("]["):
            fields[name] = _with_member(_as(list, fields.get(name)), part[2:], read)
            objects.add(name)
        elif name in _LISTS or (bracket and not part):
            fields[name] = [*_as(list, fields.get(name)), read]
        elif part:
            fields[name] = {**_as(dict, fields.get(name)), part: read}
        else:
            fields[name] = read
    for name in objects:
        _check_members(name, _as(list, fields[name]))
    return checked(ImageEdit, fields)


def _with_member(items: list[Any], name: str, value: object) -> list[Any]:
    """A list of objects as a form has it: `loras[][name]` for each, then `loras[][scale]`."""
    item = next((one for one in items if isinstance(one, dict) and name not in one), None)
    if item is None:
        items.append(item := {})
    item[name] = value
    return items


def _check_members(name: str, items: list[Any]) -> None:
    if len({frozenset(one) if isinstance(one, dict) else None for one in items}) > 1:
        message = f"In a form each of {name[:64]} must have the same members; otherwise send JSON."
        raise Problem.invalid(f"/{name[:64]}", "ambiguous_list", message)


def _as(kind: type[T], value: object) -> T:
    """What was read of a list or an object so far."""
    return value if isinstance(value, kind) else kind()


def _data_url(file: BinaryIO, max_bytes: int) -> str:
    # What the file is shows when it is decoded, whatever is said here; so does that it is too long.
    return f"data:image/png;base64,{encode(file.read(max_bytes + 1))}"


def _from_text(text: str) -> Any:
    """JSON, or what Python's `str` and an empty field mean."""
    try:
        return _NO_JSON[text] if text in _NO_JSON else from_json(text)
    except (ValueError, TypeError):  # the latter for lone surrogates
        return text


@problems(*BODY_PROBLEMS, "malformed_json", "malformed_request")
async def _read_edit(
    request: Request, resources: Res, _: Annotated[Principal, Depends(authenticate)]
) -> ImageEdit:
    media_type = media_type_of(request)
    if media_type == "multipart/form-data":
        return await _read_form(request, resources.settings.max_upload_bytes)
    if media_type != "application/json":
        raise Problem("unsupported_media_type", "Send multipart/form-data or application/json.")
    return parse(ImageEdit, await request.body())


_EDIT_BODY = body_schema(ImageEdit, _EDIT_EXAMPLES)
_EDIT_BODY["requestBody"]["content"]["multipart/form-data"] = {"schema": _EDIT_FORM}
vars(_read_edit)["request_body"] = _EDIT_BODY


def _is_stream(body: ImageGeneration) -> bool:
    return body.stream is True


Generation = Annotated[
    ImageGeneration, Depends(held(json_body(ImageGeneration, _EXAMPLES), _is_stream))
]
Edit = Annotated[ImageEdit, Depends(held(_read_edit, _is_stream))]

_REFUSALS = problems(*GENERATION_REFUSALS)
_IGNORED = {
    "schema": {"type": "string"},
    "description": "Fields of the request that have no effect here.",
}
_ANSWERS: dict[int | str, dict[str, Any]] = {
    200: {
        "model": Images,
        "description": "The images; with `stream`, server-sent events.",
        "content": {"text/event-stream": {"schema": {"type": "string"}}},
        "headers": {"Darkroom-Ignored": _IGNORED},
    },
    202: {"model": Images, "description": "With `Prefer: wait=n`: not done by then. Poll `job`."},
}


@_REFUSALS
async def generate(
    *,
    request: Request,
    resources: Res,
    principal: JobsWrite,
    body: Generation,
    idempotency_key: IdempotencyKey,
    seconds: Wait,
) -> Response:
    """Submits a job and waits for it, ten minutes at most. Errors have OpenAI's `error` in
    addition to the members of a problem. Also at `/v1/images/generations`."""
    return await _answer(resources, principal, request, body, key=idempotency_key, seconds=seconds)


@_REFUSALS
@problems("image_refused")
async def edit(
    *,
    request: Request,
    resources: Res,
    principal: JobsWrite,
    body: Edit,
    idempotency_key: IdempotencyKey,
    seconds: Wait,
) -> Response:
    """As a generation, starting from an image. Also at `/v1/images/edits`."""
    return await _answer(resources, principal, request, body, key=idempotency_key, seconds=seconds)


async def _answer(
    resources: Resources,
    principal: Principal,
    request: Request,
    body: ImageGeneration,
    *,
    key: str | None,
    seconds: int | None,
) -> Response:
    job, was_joined = await submit_job(resources, principal, request, body, key)
    let_go(request, body, "image", "images", "init_image", "mask", "mask_image", *IMAGE_LISTS)
    headers = {"Location": job.links.self}
    if body.ignored:
        headers["Darkroom-Ignored"] = ", ".join(body.ignored)
    if was_joined:
        headers["Idempotency-Replayed"] = "true"
    most = WAIT_SECONDS if seconds is None else seconds
    if body.stream:
        pieces = stream_images(resources, principal, job, body, most)
        headers |= {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
        return EventSourceResponse(while_key_lives(resources, principal, pieces), headers=headers)
    job = await wait_until_done(resources, principal, request, job, after=START, seconds=most)
    if seconds is not None and job.finished_at is None:
        return json_answer(serialize(job, body, []), 202, headers)
    check_ended(job)
    data = await read_images(resources, principal, job, body)
    return await on_thread(json_answer, serialize(job, body, data), 200, headers)


for _path, _shown in (("/openai/v1/images", True), ("/v1/images", False)):
    for _name, _endpoint, _summary in (
        ("generations", generate, "Generate images (OpenAI format)"),
        ("edits", edit, "Edit an image (OpenAI format)"),
    ):
        router.add_api_route(
            f"{_path}/{_name}",
            _endpoint,
            methods=["POST"],
            operation_id=f"openai.{_name}" if _shown else f"images.{_name}",
            summary=_summary,
            response_class=Response,
            responses=_ANSWERS,
            include_in_schema=_shown,
        )


@router.get(
    "/openai/v1/models", operation_id="openai.models", summary="List models (OpenAI format)"
)
async def list_models(resources: Res, _: JobsRead) -> OpenAIModels:
    """The models of GET /v1/models by their names; the first is the default."""
    return OpenAIModels(data=[serialize_model(spec) for spec in resources.catalog.model])


@router.get(
    "/openai/v1/models/{model}", operation_id="openai.model", summary="Get a model (OpenAI format)"
)
async def get_model(
    resources: Res, _: JobsRead, model: Annotated[str, Path(description="A name or an alias.")]
) -> OpenAIModel:
    """The model of that name or alias."""
    return serialize_model(find_model(model, resources.catalog))
