"""What all answers share: times, pages, cursors, JSON; and query parameters nobody declared."""

import base64
import binascii
import hashlib
from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime
from typing import Annotated, Any, Generic, TypeVar
from uuid import UUID

from fastapi import Depends, Header, Request
from fastapi.responses import Response
from pydantic import AfterValidator, AwareDatetime, BaseModel, ConfigDict, Field
from pydantic_core import PydanticCustomError

from api.core.auth import authenticate
from api.core.errors import MAX_ERRORS, MAX_TEXT, FieldError, Problem
from api.core.principal import Principal

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

    # A string beneath a field is its description in the OpenAPI document (`api.core.openapi`).
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


# A misspelt filter would otherwise widen a search, or a deletion made from it, without a word.
# Bodies refuse unknown fields for the same reason.

F = TypeVar("F", bound=Callable[..., Any])


_open_ended: dict[Callable[..., Any], str] = {}


_declared: dict[str, tuple[frozenset[str], tuple[str, ...]]] = {}
"""By operation: its parameters, and the beginnings of those that clients name."""


def open_ended(prefix: str) -> Callable[[F], F]:
    """Mark a dependency that reads any parameter which begins so."""

    def mark(dependency: F) -> F:
        _open_ended[dependency] = prefix
        return dependency

    return mark


async def refuse_unknown_parameters(
    request: Request, _: Annotated[Principal, Depends(authenticate)]
) -> None:
    """A dependency of every router whose requests need a key.

    Raises:
        Problem: 422 `validation_failed`, which names them and says what there is.
    """
    if not request.query_params:
        return
    route = request.scope["route"]
    if route.operation_id not in _declared:
        found = list(_dependants(route.dependant))
        _declared[route.operation_id] = (
            frozenset(field.alias for one in found for field in one.query_params),
            tuple(_open_ended[one.call] for one in found if one.call in _open_ended),
        )
    names, prefixes = _declared[route.operation_id]
    unknown = [
        name for name in request.query_params if name not in names and not name.startswith(prefixes)
    ]
    if unknown:
        known = [*sorted(names), *(f"{prefix}<key>" for prefix in prefixes)]
        message = f"There is no such parameter; there are: {', '.join(known) or 'none'}."
        raise Problem(
            "validation_failed",
            f"{unknown[0][:MAX_TEXT]}: {message}",
            errors=[
                FieldError(
                    pointer=None,
                    parameter=name[:MAX_TEXT],
                    code="unknown_parameter",
                    message=message,
                )
                for name in unknown[:MAX_ERRORS]
            ],
        )


def _dependants(dependant: Any) -> Iterator[Any]:
    yield dependant
    for below in dependant.dependencies:
        yield from _dependants(below)
