"""A problem: what ends a request, and what it says of the fields that are to blame."""

from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import BaseModel, Field

from api.problems.catalogue import CATALOGUE

MAX_ERRORS = 20
"""Findings that one answer lists."""
MAX_TEXT = 300
"""Characters of a path, a pointer or a message in an answer."""


class FieldError(BaseModel):
    """One field that breaks a rule."""

    pointer: str | None = Field(description="JSON pointer (RFC 6901) into the body.")
    parameter: str | None = Field(
        default=None, description="Name of a query, path, header or form parameter."
    )
    code: str
    """A stable code of the broken rule."""
    message: str
    """A human-readable explanation."""


class ProblemDocument(BaseModel):
    """An RFC 9457 problem."""

    type: str
    """A relative URL that explains this kind of problem."""
    title: str
    """What the kind of problem means, in one line."""
    status: int
    """The HTTP status, repeated."""
    detail: str | None
    """What went wrong in this request. Null: the title says it all."""
    instance: str
    """The path of the request."""
    code: str
    """A stable code of the kind of problem, for programs."""
    request_id: str
    """The request's id, as in the header `X-Request-Id`. Name it in reports."""
    errors: list[FieldError]
    """The fields that break a rule, 20 at most. Often empty."""


class Problem(Exception):
    """Ends a request with an entry of the catalogue."""

    def __init__(
        self,
        code: str,
        detail: str | None = None,
        *,
        errors: Sequence[FieldError] = (),
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(code, detail)
        self.kind = CATALOGUE[code]
        self.detail = detail
        self.errors = list(errors)
        self.headers = dict(headers or {})
        if self.kind.status == 503:
            self.headers.setdefault("Retry-After", "2")

    @classmethod
    def invalid(cls, pointer: str, code: str, message: str) -> "Problem":
        """One field of the body breaks a rule."""
        error = FieldError(pointer=pointer, code=code, message=message)
        return cls("validation_failed", message, errors=[error])


def not_found(thing: str) -> Problem:
    """No such row, or one of another tenant, or an id that cannot be one."""
    return Problem("not_found", f"There is no {thing} with this id.")


def from_validation(errors: Sequence[Any]) -> Problem:
    """pydantic's errors about a body, as a problem that repeats nothing of it but field names."""
    fields = [_field_error(error) for error in errors[:MAX_ERRORS]]
    return Problem("validation_failed", f"{fields[0].pointer}: {fields[0].message}", errors=fields)


def _field_error(error: Any) -> FieldError:
    where = pointer(*(part for part in error["loc"] if part != "[key]"))[:MAX_TEXT]
    code = str(error["type"])
    broken = error.get("ctx", {}).get("error")
    if isinstance(broken, RuleBroken):
        where, code = broken.pointer or where, broken.code
    return FieldError(pointer=where, code=code, message=message_of(error))


def message_of(error: Any) -> str:
    """What one of pydantic's errors says, without its prefix."""
    return str(error["msg"]).removeprefix("Value error, ")[:MAX_TEXT]


def pointer(*path: object) -> str:
    """The JSON pointer (RFC 6901) to a place in the body."""
    return "".join(f"/{str(part).replace('~', '~0').replace('/', '~1')}" for part in path)


class RuleBroken(ValueError):
    """Raised inside a pydantic validator: the field breaks a rule that has its own code.

    A rule between fields names the one it points to.
    """

    def __init__(self, code: str, message: str, pointer: str | None = None) -> None:
        super().__init__(message)
        self.code = code
        self.pointer = pointer
