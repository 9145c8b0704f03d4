"""Problems (RFC 9457): what ends a request, and how it is answered."""

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from typing import Any, TypeVar, get_args

from fastapi import Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import Response
from pydantic import BaseModel, Field
from starlette.exceptions import HTTPException
from starlette.routing import Match

from api.core.error_catalogue import CATALOGUE
from api.core.metrics import PROBLEMS
from shared.core.errors import StorageUnavailable

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
    """The meaning of this kind of problem, in one line."""
    status: int
    """The HTTP status, repeated."""
    detail: str | None
    """Details of this request's problem. Null: the title says it all."""
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


def bad_parameter(name: str, code: str, message: str, kind: str = "validation_failed") -> Problem:
    """One parameter, of the query or of a form, breaks a rule."""
    error = FieldError(pointer=None, parameter=name, code=code, message=message)
    return Problem(kind, message, errors=[error])


def broken_rules(*rules: tuple[bool, str, str, str]) -> list[FieldError]:
    """Those of (holds, pointer, code, message) that do not hold."""
    return [
        FieldError(pointer=pointer, code=code, message=message)
        for holds, pointer, code, message in rules
        if not holds
    ]


def not_found(thing: str) -> Problem:
    """No such row, or one of another tenant, or an id that cannot be one."""
    return Problem("not_found", f"There is no {thing} with this id.")


def did_you_mean(name: str, names: Iterable[str]) -> str:
    """` Did you mean this?` about the name most like it; empty if none is."""
    plain = {_plain(one): one for one in names}
    near = get_close_matches(_plain(name[:64]), plain, 1)
    return f" Did you mean {plain[near[0]]}?" if near else ""


def _plain(name: str) -> str:
    return name.lower().replace(" ", "_")


def from_validation(errors: Sequence[Any], model: type[BaseModel]) -> Problem:
    """pydantic's errors about a body, as a problem that repeats nothing of it but field names."""
    fields = [_field_error(error, model) for error in errors[:MAX_ERRORS]]
    return Problem("validation_failed", f"{fields[0].pointer}: {fields[0].message}", errors=fields)


def _field_error(error: Any, model: type[BaseModel]) -> FieldError:
    where = pointer(*(part for part in error["loc"] if part != "[key]"))[:MAX_TEXT]
    code = str(error["type"])
    broken = error.get("ctx", {}).get("error")
    if isinstance(broken, RuleBroken):
        where, code = broken.pointer or where, broken.code
    message = message_of(error)
    if code == "extra_forbidden":
        *path, name = error["loc"]
        message = f"There is no such field.{did_you_mean(str(name), _fields_at(model, path))}"
    return FieldError(pointer=where, code=code, message=message)


def _fields_at(model: type[BaseModel], path: Sequence[object]) -> Iterable[str]:
    """The fields that there are at a place of the body."""
    for part in path:
        known = model.model_fields.get(part) if isinstance(part, str) else None
        if known is not None:
            model = next(_models_in(known.annotation), model)
    return model.model_fields


def _models_in(annotation: Any) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for part in get_args(annotation):
        yield from _models_in(part)


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


Marked = TypeVar("Marked", bound=Callable[..., Any])


def problems(*codes: str) -> Callable[[Marked], Marked]:
    """Mark an operation, or what it depends on, with what it can answer.

    The OpenAPI document of an operation has what all of its dependencies are marked with.
    """

    def mark(function: Marked) -> Marked:
        vars(function)["problems"] = (*problems_of(function), *codes)
        return function

    return mark


def problems_of(function: Callable[..., Any] | None) -> tuple[str, ...]:
    """What the function is marked with."""
    return getattr(function, "problems", ())


MEDIA_TYPE = "application/problem+json"

_CODE_OF_STATUS = {
    401: "unauthenticated",
    403: "insufficient_scope",
    404: "not_found",
    405: "method_not_allowed",
    413: "body_too_large",
    415: "unsupported_media_type",
    422: "validation_failed",
}


@dataclass(frozen=True)
class Retold:
    """A problem as another API tells of it."""

    status: int
    members: dict[str, Any] = field(default_factory=dict)
    """In addition to those of RFC 9457."""
    headers: dict[str, str] = field(default_factory=dict)


DIALECTS: dict[str, Callable[[Problem], Retold]] = {}
"""How other people's APIs tell of problems, by the beginning of their paths."""


def retold(problem: Problem, path: str) -> Retold:
    """The problem in the words of the API that the path belongs to."""
    for beginning, retell in DIALECTS.items():
        if path.startswith(beginning):
            return retell(problem)
    return Retold(problem.kind.status)


def answer(problem: Problem, path: str, request_id: str) -> Response:
    """The problem as an HTTP answer; it is counted."""
    PROBLEMS.labels(problem.kind.code).inc()
    form = retold(problem, path)
    document = form.members | {
        "type": f"/problems/{problem.kind.code}",
        "title": problem.kind.title,
        "status": form.status,
        "detail": problem.detail,
        "instance": path[:MAX_TEXT],
        "code": problem.kind.code,
        "request_id": request_id,
        "errors": [error.model_dump() for error in problem.errors[:MAX_ERRORS]],
    }
    # ASCII escapes: a path or field name with a lone surrogate is still an answer, not a 500.
    body = json.dumps(document, ensure_ascii=True, allow_nan=False)
    return Response(body, form.status, problem.headers | form.headers, MEDIA_TYPE)


HANDLED = (Problem, StorageUnavailable, HTTPException, RequestValidationError)
"""What `handle` answers; anything else is a bug and gets 500 from the middleware."""


async def handle(request: Request, error: Exception) -> Response:
    """FastAPI's handler: every refusal is a problem of the same shape."""
    request_id = str(request.scope.get("darkroom.request_id", ""))
    return answer(_problem_of(request, error), request.url.path, request_id)


def _problem_of(request: Request, error: Exception) -> Problem:
    match error:
        case Problem():
            return error
        case StorageUnavailable():  # unavailable, or no credentials to sign URLs with
            return Problem("storage_unavailable")
        case RequestValidationError():  # of query, path and header parameters
            fields = [_parameter_error(each) for each in error.errors()[:MAX_ERRORS]]
            detail = f"{fields[0].parameter}: {fields[0].message}"
            return Problem("validation_failed", detail, errors=fields)
        case HTTPException():
            return _of_starlette(request, error)
    raise TypeError(type(error))


def _of_starlette(request: Request, error: HTTPException) -> Problem:
    """Its own refusals: 404, 405, …"""
    fallback = "malformed_request" if error.status_code < 500 else "internal_error"
    code = _CODE_OF_STATUS.get(error.status_code, fallback)
    details = {
        "not_found": "There is nothing at this path.",
        "method_not_allowed": f"{request.method} is not allowed here.",
    }
    headers = dict(error.headers or {})
    if code == "method_not_allowed":
        headers["Allow"] = ", ".join(_methods_at(request))
    return Problem(code, details.get(code), headers=headers)


def _methods_at(request: Request) -> list[str]:
    """All methods of the path; Starlette names those of the first route that has it."""
    methods = [
        method
        for method in ("DELETE", "GET", "PATCH", "POST", "PUT")
        if any(
            route.matches({**request.scope, "method": method})[0] is Match.FULL
            for route in request.app.routes
        )
    ]
    return sorted([*methods, "HEAD"]) if "GET" in methods else methods


def _parameter_error(error: Any) -> FieldError:
    """FastAPI's location is (query | path | header, name, …)."""
    name = str(error["loc"][1])[:MAX_TEXT]
    code = str(error["type"])
    return FieldError(pointer=None, parameter=name, code=code, message=message_of(error))
