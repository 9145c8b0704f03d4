"""Request bodies: strict JSON into models that refuse what they do not know, and one file."""

import json
from collections.abc import Awaitable, Callable
from typing import Annotated, Any, TypeVar

from fastapi import Depends, Request
from pydantic import BaseModel, BeforeValidator, ConfigDict, ValidationError
from python_multipart.multipart import parse_options_header
from starlette.datastructures import FormData, UploadFile
from starlette.exceptions import HTTPException
from starlette.formparsers import MultiPartException

from api.core.auth import authenticate
from api.core.errors import (
    FieldError,
    Problem,
    bad_parameter,
    from_validation,
    pointer,
    problems,
)
from api.core.limits import RELEASE
from api.core.principal import Principal

M = TypeVar("M", bound="RequestModel")


def _whole(value: object) -> object:
    return int(value) if isinstance(value, float) and value.is_integer() else value


JSON_INTEGER = BeforeValidator(_whole)
"""Takes 7.0 for 7, as JSON Schema does (2020-12, 6.1.1). Stands behind the limits in `Annotated`:
before them it would hide the int that they belong to, from pydantic's core and from OpenAPI."""


class RequestModel(BaseModel):
    """The base of request bodies: unknown fields, NaN and lenient conversions are refused."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False, frozen=True)


def parse(model: type[M], body: bytes) -> M:
    """One JSON document as `model`; for the lines of a batch, too.

    Raises:
        Problem: 422 `malformed_json` or `validation_failed`.
    """
    try:
        return model.model_validate_json(body)
    except ValidationError as error:
        problems = error.errors(include_url=False, include_input=False)
        if problems[0]["type"] == "json_invalid":
            culprits = _lone_surrogates(body)
            raise Problem("malformed_json", _MALFORMED, errors=culprits) from None
        raise from_validation(problems, model) from None


def checked(model: type[M], fields: Any, *, strict: bool = True) -> M:
    """What was read of a request already, as `model`; `strict` is about the types of fields.

    Raises:
        Problem: 422 `validation_failed`.
    """
    try:
        return model.model_validate(fields, strict=strict)
    except ValidationError as error:
        problems = error.errors(include_url=False, include_input=False)
        raise from_validation(problems, model) from None


EXAMPLE_IMAGE = (
    "data:image/png;base64,iVBORw0KGgoAAAANSUhEUgAAAEAAAABAAQMAAACQp+OdAAAABlBMVEVGluZQtEainj1DAAA"
    "AFklEQVR42mNgGAWUAsb/UAYTw4hjAAAX5AE3ooIjkwAAAABJRU5ErkJggg=="
)
"""A sky above a field, 64 pixels wide, so that documented examples can be sent as they are."""

_MALFORMED = "The body cannot be parsed as JSON (RFC 8259, UTF-8)."


def _lone_surrogates(body: bytes) -> list[FieldError]:
    """Which top-level fields hold half a character: the one fault that text editors cannot show."""
    try:
        document = json.loads(body)
    except (ValueError, RecursionError):
        return []
    if not isinstance(document, dict):
        return []
    return [
        FieldError(
            pointer=pointer(name),
            code="lone_surrogate",
            message="It contains a lone surrogate, which is not a character.",
        )
        for name, value in document.items()
        if isinstance(value, str) and not _is_encodable(value)
    ]


def _is_encodable(text: str) -> bool:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


# FastAPI would read and parse a body before it asks who sends it; here a stranger's body is never
# read. The models are registered so that OpenAPI still shows them.

BODY_MODELS: set[type[BaseModel]] = set()
"""Every model that `json_body` reads; `api.core.openapi` puts their schemas into the document."""

BODY_PROBLEMS = ("body_too_large", "body_too_slow", "disk_full", "busy", "unsupported_media_type")


def media_type_of(request: Request) -> str:
    """That of the body, in lower case and without parameters; empty where none is given."""
    return request.headers.get("content-type", "").partition(";")[0].strip().lower()


def json_body(
    model: type[M], examples: dict[str, Any] | None = None
) -> Callable[..., Awaitable[M]]:
    """A dependency that reads the body as `model`; 415, 422 or 413 when it cannot be."""

    @problems(*BODY_PROBLEMS, "malformed_json")
    async def read(request: Request, _: Annotated[Principal, Depends(authenticate)]) -> M:
        media_type = media_type_of(request)
        if media_type != "application/json" and not media_type.endswith("+json"):
            raise Problem("unsupported_media_type", "Send the body as application/json.")
        body = await request.body()
        return parse(model, body)

    vars(read)["request_body"] = body_schema(model, examples)
    return read


def let_go(request: Request, body: BaseModel, *images: str) -> None:
    """The body has been dealt with, and the answer may be minutes away: drop these fields and the
    bytes, and let the next large body in."""
    vars(body).update(dict.fromkeys(images))
    for name in images:
        (body.model_extra or {}).pop(name, None)
    vars(request).pop("_body", None)
    request.scope[RELEASE]()


def body_schema(model: type[BaseModel], examples: dict[str, Any] | None = None) -> dict[str, Any]:
    """OpenAPI of an operation that reads `model`."""
    BODY_MODELS.add(model)
    content: dict[str, Any] = {"schema": {"$ref": f"#/components/schemas/{model.__name__}"}}
    if examples:
        content["examples"] = {name: {"value": value} for name, value in examples.items()}
    return {"requestBody": {"required": True, "content": {"application/json": content}}}


def multipart_schema(*required: str, **properties: dict[str, Any]) -> dict[str, Any]:
    """OpenAPI of a multipart body with these fields."""
    schema = {"type": "object", "required": [*required], "properties": properties}
    return {"required": True, "content": {"multipart/form-data": {"schema": schema}}}


def file_field(description: str) -> dict[str, Any]:
    """OpenAPI of a field that is a file."""
    return {"type": "string", "format": "binary", "description": description}


FILE_SCHEMA = {"requestBody": multipart_schema("file", file=file_field("The file itself."))}
"""OpenAPI of an operation that reads one file."""


@problems(*BODY_PROBLEMS, "malformed_request")
async def read_file(request: Request, _: Annotated[Principal, Depends(authenticate)]) -> UploadFile:
    """The multipart field `file`, spooled to disk beyond 1 MB; closed with the request."""
    _form, file = await read_file_form(request)
    return file


vars(read_file)["request_body"] = FILE_SCHEMA


LORA_SCHEMA = multipart_schema(
    *("file", "name", "family"),
    file=file_field("safetensors."),
    name={"type": "string", "description": "a-z, 0-9, dot, dash, underscore."},
    family={"type": "string", "description": "As in GET /v1/models."},
    trigger_words={"type": "string", "description": "Separated by commas."},
)
File = Annotated[UploadFile, Depends(read_file)]


_CHARSETS = frozenset(("utf-8", "utf8", "us-ascii", "ascii", "iso-8859-1", "latin-1"))
"""Starlette takes any codec of Python's; punycode's time grows with the square of the length."""


async def parse_form(request: Request, *, files: int, fields: int, field_bytes: int) -> FormData:
    """A multipart body, with at most this many files and fields.

    Raises:
        Problem: 400 for any other body, with the reason.
    """
    _, options = parse_options_header(request.headers.get("content-type"))
    charset = options.get(b"charset", b"utf-8").decode("latin-1").lower()
    if charset not in _CHARSETS:
        message = "The multipart body cannot be read: send it as UTF-8."
        raise Problem("malformed_request", message)
    try:
        return await request.form(max_files=files, max_fields=fields, max_part_size=field_bytes)
    except MultiPartException as error:
        why = error.message
    except HTTPException as error:
        why = error.detail
    except UnicodeError:
        why = "its charset does not fit"
    raise Problem("malformed_request", f"The multipart body cannot be read: {why}")


async def read_file_form(request: Request) -> tuple[FormData, UploadFile]:
    """A multipart body of one file and a few short fields.

    Raises:
        Problem: 415 for another content type; and as `read_form`.
    """
    if media_type_of(request) != "multipart/form-data":
        raise Problem("unsupported_media_type", "Send the file as multipart/form-data.")
    return await read_form(request, fields=8, field_bytes=64 * 1024)


async def read_form(
    request: Request, *, fields: int, field_bytes: int
) -> tuple[FormData, UploadFile]:
    """A multipart body of one file, in the field `file`, and at most this many `fields` besides.

    Raises:
        Problem: 400 for any other body, with the reason; 422 without the file.
    """
    form = await parse_form(request, files=1, fields=fields, field_bytes=field_bytes)
    file = form.get("file")
    if not isinstance(file, UploadFile):
        message = "Send one file in the multipart field `file`."
        raise bad_parameter("file", "missing", message)
    return form, file
