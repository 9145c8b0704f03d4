"""Request bodies, read after authentication and before validation: strict JSON and one file.

FastAPI would read and parse a body before it asks who sends it; here a stranger's body is never
read. The models are registered so that OpenAPI still shows them.
"""

from collections.abc import Awaitable, Callable
from typing import Annotated, Any, TypeVar

from fastapi import Depends, Request
from pydantic import BaseModel
from starlette.datastructures import FormData, UploadFile
from starlette.exceptions import HTTPException
from starlette.formparsers import MultiPartException

from api.auth import authenticate
from api.principal import Principal
from api.problems import FieldError, Problem
from api.request_model import RequestModel, parse

M = TypeVar("M", bound=RequestModel)

BODY_MODELS: set[type[BaseModel]] = set()
"""Every model that `json_body` reads; `api.openapi` puts their schemas into the document."""


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
