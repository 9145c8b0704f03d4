"""Request bodies: strict JSON into models that refuse what they do not know, and one file."""

import json
from collections.abc import Awaitable, Callable
from typing import Annotated, Any, TypeVar

from fastapi import Depends, Request
from pydantic import BaseModel, BeforeValidator, ConfigDict, ValidationError
from starlette.datastructures import FormData, UploadFile
from starlette.exceptions import HTTPException
from starlette.formparsers import MultiPartException

from api.core.auth import authenticate
from api.core.errors import FieldError, Problem, from_validation, pointer
from api.core.principal import Principal

M = TypeVar("M", bound="RequestModel")


def _whole(value: object) -> object:
    return int(value) if isinstance(value, float) and value.is_integer() else value


JSON_INTEGER = BeforeValidator(_whole)
"""Takes 7.0 for 7, as JSON Schema does (2020-12, 6.1.1). Stands behind the limits in `Annotated`:
before them it would hide the int that they belong to, from pydantic's core and from OpenAPI."""


class RequestModel(BaseModel):
    """The base of request bodies: unknown fields, NaN and lenient conversions are refused."""

    model_config = ConfigDict(
        extra="forbid",
        strict=True,
        allow_inf_nan=False,
        frozen=True,
    )


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
        raise from_validation(problems) from None


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
            message="It holds a surrogate without its other half, which is no character.",
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


def json_body(model: type[M]) -> Callable[..., Awaitable[M]]:
    """A dependency that reads the body as `model`; 415, 422 or 413 when it cannot be."""
    BODY_MODELS.add(model)

    async def read(request: Request, _: Annotated[Principal, Depends(authenticate)]) -> M:
        media_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
        if media_type != "application/json" and not media_type.endswith("+json"):
            raise Problem("unsupported_media_type", "Send the body as application/json.")
        body = await request.body()
        return parse(model, body)

    return read


def body_schema(model: type[BaseModel], examples: dict[str, Any] | None = None) -> dict[str, Any]:
    """`openapi_extra` of an operation that reads `model` through `json_body`."""
    BODY_MODELS.add(model)
    content: dict[str, Any] = {"schema": {"$ref": f"#/components/schemas/{model.__name__}"}}
    if examples:
        content["examples"] = {name: {"value": value} for name, value in examples.items()}
    return {"requestBody": {"required": True, "content": {"application/json": content}}}


FILE_SCHEMA: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "content": {
            "multipart/form-data": {
                "schema": {
                    "type": "object",
                    "required": ["file"],
                    "properties": {
                        "file": {
                            "type": "string",
                            "format": "binary",
                            "description": "The file itself.",
                        }
                    },
                }
            }
        },
    }
}
"""`openapi_extra` of an operation that reads one file through `read_file`."""


async def read_file(request: Request, _: Annotated[Principal, Depends(authenticate)]) -> UploadFile:
    """The multipart field `file`, spooled to disk beyond 1 MB; closed with the request.

    Raises:
        Problem: 415 for another content type; and as `read_form`.
    """
    if not request.headers.get("content-type", "").lower().startswith("multipart/form-data"):
        raise Problem("unsupported_media_type", "Send the file as multipart/form-data.")
    _form, file = await read_form(request, fields=8, field_bytes=64 * 1024)
    return file


async def read_form(
    request: Request, *, fields: int, field_bytes: int
) -> tuple[FormData, UploadFile]:
    """A multipart body of one file, in the field `file`, and at most so many `fields` beside it.

    Raises:
        Problem: 400 for what is no such body, with the reason; 422 without the file.
    """
    try:
        form = await request.form(max_files=1, max_fields=fields, max_part_size=field_bytes)
    except (MultiPartException, HTTPException) as error:
        why = error.message if isinstance(error, MultiPartException) else error.detail
        raise Problem("malformed_request", f"The multipart body cannot be read: {why}") from None
    file = form.get("file")
    if not isinstance(file, UploadFile):
        message = "Send one file in the multipart field `file`."
        missing = FieldError(pointer=None, parameter="file", code="missing", message=message)
        raise Problem("validation_failed", message, errors=[missing])
    return form, file
