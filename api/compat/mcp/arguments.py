"""Arguments of tools: their schemas, and the models that check them."""

import json
from collections.abc import Iterable, Mapping
from typing import Annotated, Any

from pydantic import AfterValidator, Field, create_model

from api.batches.schemas import BatchSubmission
from api.core.bodies import RequestModel, checked
from api.core.serialization import no_nul
from api.jobs.schemas import JobStateName
from api.jobs.submission import JobSubmission, PromptText, SessionId
from api.search.routes import says_something
from shared.images.models import MAX_PROMPT

MAX_WAIT = 590
"""Seconds."""
DEFAULT_WAIT = 50
"""Seconds; many clients give a tool 60."""
_OF_EDITS = ("init_image", "strength", "resize_mode")
_NOT_FOR_AGENTS = ("webhook", "previews", "start_within", "finish_within")
"""They are for programs, and each field that is shown costs tokens."""

Id = Annotated[str, Field(max_length=64), AfterValidator(no_nul)]
Name = Annotated[str, Field(max_length=64), AfterValidator(no_nul)]
Wait = Annotated[int, Field(ge=0, le=MAX_WAIT)]
SESSION = "mcp"
"""The session of jobs for which none is named."""
_OF_SESSION = "Only those of this session; tools use `mcp` unless told otherwise."


class _Waits(RequestModel):
    wait_seconds: Wait = Field(
        default=DEFAULT_WAIT,
        description="How long to wait for the end. The job continues after it; see get_job.",
    )


def _fields(model: type[RequestModel], without: Iterable[str]) -> dict[str, Any]:
    session = Field(default=SESSION, description="The folder of these images; made on first use.")
    left_out = set(without)
    return {
        name: (info.annotation, info)
        for name, info in model.model_fields.items()
        if name not in left_out
    } | {"session_id": (SessionId, session)}


GenerateImage = create_model(
    "GenerateImage", __base__=_Waits, **_fields(JobSubmission, (*_OF_EDITS, *_NOT_FOR_AGENTS))
)
EditImage = create_model(
    "EditImage",
    __base__=_Waits,
    image=(
        str,
        Field(description="The image to start from: `img_…`, `upl_…`, a data: or an https URL."),
    ),
    **_fields(JobSubmission, ("init_image", *_NOT_FOR_AGENTS))
    | {
        "prompt": (
            PromptText | None,
            Field(default=None, description="What to show. Default: as for that image."),
        )
    },
)
SubmitBatch = create_model(
    "SubmitBatch",
    __base__=RequestModel,
    **_fields(
        BatchSubmission,
        ("upload_id", "format", "template", "columns", *_NOT_FOR_AGENTS),
    ),
)


class GetJob(RequestModel):
    job_id: Id
    wait_seconds: Wait = Field(default=0, description="How long to wait for the end.")


class OneJob(RequestModel):
    job_id: Id


class OneBatch(RequestModel):
    batch_id: Id


class ReproduceImage(_Waits):
    image_id: Id


class Nothing(RequestModel):
    pass


class ListJobs(RequestModel):
    state: list[JobStateName] = Field(default_factory=list, description="Only jobs in these.")
    session_id: Name | None = Field(default=None, description=_OF_SESSION)
    limit: Annotated[int, Field(ge=1, le=50)] = Field(default=10, description="How many.")
    after: str | None = Field(default=None, description="`next_cursor` of the call before.")


class SearchImages(RequestModel):
    query: Annotated[str, Field(max_length=MAX_PROMPT), AfterValidator(says_something)] | None = (
        Field(default=None, description="What the images show, in any language.")
    )
    image_id: Id | None = Field(default=None, description="Instead: images like this one.")
    session_id: Name | None = Field(default=None, description=_OF_SESSION)
    model: Name | None = Field(default=None, description="Only images of this model.")
    starred: bool | None = Field(default=None, description="true: only starred images.")
    limit: Annotated[int, Field(ge=1, le=50)] = Field(default=8, description="How many.")
    after: Annotated[str, Field(max_length=2000)] | None = Field(
        default=None, description="`next_cursor` of the call before."
    )


def validated(model: type[RequestModel], arguments: Mapping[str, Any]) -> Any:
    """The arguments as `model`, read leniently: language models write numbers as texts and give
    null for what they leave out, and some clients send lists and objects as texts, too.

    Raises:
        Problem: 422 `validation_failed`.
    """
    shown = schema_of(model)["properties"]
    read = {
        name: _read(value, shown.get(name, {}))
        for name, value in arguments.items()
        if value is not None
    }
    return checked(model, read, strict=False)


def _read(value: Any, shown: Mapping[str, Any]) -> Any:
    kinds = {one.get("type") for one in (shown, *shown.get("anyOf", ()))}
    if not isinstance(value, str) or not kinds & {"array", "object"} or "string" in kinds:
        return value
    try:
        return json.loads(value)
    except (ValueError, RecursionError):
        return value


_schemas: dict[type, dict[str, Any]] = {}


def schema_of(model: type[Any], mode: Any = "validation") -> dict[str, Any]:
    """The JSON schema of a tool's arguments or answer."""
    if model not in _schemas:
        _schemas[model] = _without_titles(model.model_json_schema(mode=mode))
        _schemas[model].setdefault("properties", {})
    return _schemas[model]


def _without_titles(schema: Any) -> Any:
    """pydantic names every field a second time, which costs clients' models tokens."""
    if isinstance(schema, list):
        return [_without_titles(one) for one in schema]
    if not isinstance(schema, dict):
        return schema
    return {
        name: _without_titles(value)
        for name, value in schema.items()
        if name != "title" or not isinstance(value, str)
    }
