"""What all answers share: times in UTC, pages with cursors, links, and JSON sent as it is."""

import base64
import binascii
import hashlib
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Annotated, Generic, TypeVar
from uuid import UUID

from fastapi import Header
from fastapi.responses import Response
from pydantic import AfterValidator, AwareDatetime, BaseModel, ConfigDict, Field
from pydantic_core import PydanticCustomError

from api.problems import Problem

Item = TypeVar("Item")

UtcTime = Annotated[datetime, AfterValidator(lambda moment: moment.astimezone(UTC))]
"""RFC 3339 in UTC, with a Z."""

AwareTime = Annotated[
    AwareDatetime, Field(description="RFC 3339 with an offset, e.g. 2026-01-31T12:00:00Z.")
]


def no_nul(text: str) -> str:
    """A validator of parameters: Postgres has no text with a NUL character."""
    if "\0" in text:
        raise PydanticCustomError("nul", "It holds a NUL character, which no text here has.")
    return text


CreatedAfter = Annotated[
    AwareDatetime | None, Field(description="Made after this moment; RFC 3339 with an offset.")
]
CreatedBefore = Annotated[
    AwareDatetime | None, Field(description="Made before this moment; RFC 3339 with an offset.")
]
IfNoneMatch = Annotated[
    str | None,
    Header(description="ETags that you hold: if one is still right, the answer is an empty 304."),
]

PageLimit = Annotated[int, Field(ge=1, le=200, description="Entries per page, 1 to 200.")]


class AnswerModel(BaseModel):
    """The base of answers: what does not apply is null, never absent."""

    # A string beneath a field is its description in the OpenAPI document (`api.openapi`).
    model_config = ConfigDict(json_schema_serialization_defaults_required=True)


class Page(AnswerModel, Generic[Item]):
    """One page of a list. `next_cursor` goes into `after`; it is null on the last page."""

    data: list[Item]
    """The entries of this page, in the order that the operation gives."""
    has_more: bool
    """Whether another page follows."""
    next_cursor: str | None
    """Pass it as `after` to get the next page. Null on the last page."""


def json_answer(
    body: BaseModel, status: int = 200, headers: Mapping[str, str] | None = None
) -> Response:
    """The model as JSON: serialised once, by pydantic's Rust core."""
    return Response(body.model_dump_json(), status, dict(headers or {}), "application/json")


def etag_matches(if_none_match: str, etag: str) -> bool:
    """Weak comparison, RFC 9110 8.8.3.2."""
    offered = {tag.strip().removeprefix("W/") for tag in if_none_match.split(",")}
    return "*" in offered or etag.removeprefix("W/") in offered


def encode_cursor(position: UUID, *scope: object) -> str:
    """An opaque position in one list: bound to the list's tenant and filters by a checksum."""
    return (
        base64.urlsafe_b64encode(position.bytes + _checksum(position, scope)).decode().rstrip("=")
    )


def decode_cursor(cursor: str, *scope: object) -> UUID:
    """The position behind a cursor of this very list.

    Raises:
        Problem: the cursor is damaged, forged, or of another list, tenant or set of filters.
    """
    try:
        raw = base64.b64decode(cursor + "=" * (-len(cursor) % 4), altchars=b"-_", validate=True)
    except (binascii.Error, ValueError):
        raise Problem("malformed_cursor") from None
    if len(raw) != 24 or encode_cursor(UUID(bytes=raw[:16]), *scope) != cursor:
        raise Problem("malformed_cursor")
    return UUID(bytes=raw[:16])


def _checksum(position: UUID, scope: tuple[object, ...]) -> bytes:
    text = "\0".join(map(repr, scope)).encode("utf-8", "backslashreplace")
    return hashlib.blake2b(position.bytes + text, digest_size=8).digest()
