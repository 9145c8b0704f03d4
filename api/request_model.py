"""What a body may be: strict JSON, parsed into a model that refuses what it does not know."""

import json
from typing import TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, ValidationError

from api.problems import FieldError, Problem, from_validation, pointer

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
