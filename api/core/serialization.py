"""What all answers share: times, pages, cursors; and query parameters nobody declared."""

import base64
import binascii
import hashlib
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cache
from operator import attrgetter
from typing import Annotated, Any, Generic, Self, TypeVar
from uuid import UUID

from fastapi import Depends, Header, Query, Request
from pydantic import AfterValidator, AwareDatetime, BaseModel, ConfigDict, Field
from pydantic_core import PydanticCustomError

from api.core.auth import authenticate
from api.core.errors import MAX_ERRORS, MAX_TEXT, FieldError, Problem, did_you_mean, problems
from api.core.fairness import built
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
        raise PydanticCustomError("nul", "NUL characters are not allowed.")
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


class AnswerModel(BaseModel):
    """The base of answers: what does not apply is null, never absent."""

    # A string beneath a field is its description in the OpenAPI document (`api.core.openapi`).
    model_config = ConfigDict(json_schema_serialization_defaults_required=True)

    @classmethod
    def of(cls, source: Any, **others: Any) -> Self:
        """The answer about a row: what it has under the same names, and `others`."""
        names = _same_names(cls, type(source))  # type: ignore[arg-type]  # mypy: no class has a hash
        same = {name: getattr(source, name) for name in names if name not in others}
        return cls(**same | others)


@cache
def _same_names(schema: type[BaseModel], source: type) -> tuple[str, ...]:
    """Fields that a table, a dataclass or another model has as well, annotated or as a property."""
    known = {
        name
        for one in source.__mro__
        for name in (
            *vars(one).get("__annotations__", ()),
            *(name for name, value in vars(one).items() if isinstance(value, property)),
        )
    }
    return tuple(schema.model_fields.keys() & known)


class Page(AnswerModel, Generic[Item]):
    """One page of a list. `next_cursor` goes into `after`; it is null on the last page."""

    data: list[Item]
    """The entries of this page, in the order that the operation gives."""
    has_more: bool
    """Whether another page follows."""
    next_cursor: str | None
    """Pass it as `after` to get the next page. Null on the last page."""

    @classmethod
    def whole(cls, data: list[Item]) -> Self:
        """A list that is always one page."""
        return cls(data=data, has_more=False, next_cursor=None)


def etag_matches(if_none_match: str, etag: str) -> bool:
    """Weak comparison, RFC 9110 8.8.3.2."""
    offered = {tag.strip().removeprefix("W/") for tag in if_none_match.split(",")}
    return "*" in offered or etag.removeprefix("W/") in offered


_CHECKSUM = 8
"""Bytes."""


def seal(position: bytes, *scope: object) -> str:
    """An opaque text for a position in one list: a checksum binds it to the list's tenant and
    filters, its `scope`."""
    raw = position + _checksum(position, scope)
    return base64.urlsafe_b64encode(raw).decode().rstrip("=")


def unseal(cursor: str, *scope: object) -> bytes:
    """The position behind a cursor of this very list.

    Raises:
        Problem: the cursor is damaged, forged, or of another list, tenant or set of filters.
    """
    position = peek(cursor)
    if seal(position, *scope) != cursor:
        raise Problem("malformed_cursor")
    return position


def peek(cursor: str) -> bytes:
    """The position, whatever list the cursor is of.

    Raises:
        Problem: it is no base64.
    """
    try:
        raw = base64.b64decode(cursor + "=" * (-len(cursor) % 4), altchars=b"-_", validate=True)
    except (binascii.Error, ValueError):
        raise Problem("malformed_cursor") from None
    return raw[:-_CHECKSUM]


def _checksum(position: bytes, scope: tuple[object, ...]) -> bytes:
    text = "\0".join(map(repr, scope)).encode("utf-8", "backslashreplace")
    return hashlib.blake2b(position + text, digest_size=_CHECKSUM).digest()


def encode_cursor(position: UUID, *scope: object) -> str:
    """A cursor whose position is an id."""
    return seal(position.bytes, *scope)


def decode_cursor(cursor: str, *scope: object) -> UUID:
    """The id behind a cursor of this very list.

    Raises:
        Problem: as `unseal`.
    """
    position = unseal(cursor, *scope)
    if len(position) != 16:
        raise Problem("malformed_cursor")
    return UUID(bytes=position)


Row = TypeVar("Row")


@dataclass(frozen=True, slots=True)
class PageRequest:
    """The page of a list that a client asks for."""

    limit: int
    after: str | None = None
    """The cursor of the page before."""

    def position(self, *scope: object) -> UUID | None:
        """Where the page before ended; None for the first page.

        Raises:
            Problem: `malformed_cursor`, also for one of another list, tenant or set of filters.
        """
        return None if self.after is None else decode_cursor(self.after, *scope)

    async def page(
        self,
        fetched: Sequence[Row],
        to_item: Callable[[Row], Item],
        *scope: object,
        position: Callable[[Row], UUID] = attrgetter("id"),
    ) -> Page[Item]:
        """The page of the rows of a query with `limit + 1`."""
        rows, has_more = fetched[: self.limit], len(fetched) > self.limit
        cursor = encode_cursor(position(rows[-1]), *scope) if has_more else None
        return Page(data=await built(to_item, rows), has_more=has_more, next_cursor=cursor)


def paging(
    default: int = 50, most: int = 200, longest: int | None = None
) -> Callable[..., Awaitable[PageRequest]]:
    """A dependency: the page that the query parameters ask for. `longest` is of a cursor."""

    @problems("malformed_cursor")
    async def read(
        limit: Annotated[
            int, Query(ge=1, le=most, description=f"Entries per page, 1 to {most}.")
        ] = default,
        after: Annotated[
            str | None, Query(max_length=longest, description="`next_cursor` of the page before.")
        ] = None,
    ) -> PageRequest:
        return PageRequest(limit, after)

    return read


Paging = Annotated[PageRequest, Depends(paging())]

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
        dependencies = list(dependants(route.dependant))
        _declared[route.operation_id] = (
            frozenset(field.alias for one in dependencies for field in one.query_params),
            tuple(_open_ended[one.call] for one in dependencies if one.call in _open_ended),
        )
    names, prefixes = _declared[route.operation_id]
    unknown = [
        name for name in request.query_params if name not in names and not name.startswith(prefixes)
    ]
    if unknown:
        guess = did_you_mean(unknown[0], names)
        known = [*sorted(names), *(f"{prefix}<key>" for prefix in prefixes)]
        message = f"There is no such parameter.{guess} There are: {', '.join(known) or 'none'}."
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


def dependants(dependant: Any) -> Iterator[Any]:
    """What an operation depends on: itself first."""
    yield dependant
    for below in dependant.dependencies:
        yield from dependants(below)
