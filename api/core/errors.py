"""Problems (RFC 9457): what ends a request, how it is answered, how OpenAPI shows it."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

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


_WITH_A_KEY = ("unauthenticated", "rate_limited", "too_many_at_once", "validation_failed")
"""What every operation that needs a key can answer; the last to a parameter it does not know."""


def responses(*codes: str, public: bool = False) -> dict[int | str, dict[str, Any]]:
    """OpenAPI's description of the problems an operation can answer with.

    A `public` one needs no key.
    """
    by_status: dict[int | str, dict[str, Any]] = {}
    everywhere = () if public else _WITH_A_KEY
    with_body = ("body_too_slow", "disk_full", "busy") if "body_too_large" in codes else ()
    for kind in (CATALOGUE[code] for code in dict.fromkeys((*everywhere, *codes, *with_body))):
        entry = by_status.setdefault(
            kind.status,
            {"model": ProblemDocument, "description": "", "content": {MEDIA_TYPE: {}}},
        )
        line = f"`{kind.code}`: {kind.title}."
        entry["description"] = f"{entry['description']} {line}".strip()
    return by_status


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


def answer(problem: Problem, path: str, request_id: str) -> Response:
    """The problem as an HTTP answer; it is counted."""
    PROBLEMS.labels(problem.kind.code).inc()
    document = {
        "type": f"/problems/{problem.kind.code}",
        "title": problem.kind.title,
        "status": problem.kind.status,
        "detail": problem.detail,
        "instance": path[:MAX_TEXT],
        "code": problem.kind.code,
        "request_id": request_id,
        "errors": [error.model_dump() for error in problem.errors[:MAX_ERRORS]],
    }
    # ASCII escapes: a path or field name with a lone surrogate is still an answer, not a 500.
    body = json.dumps(document, ensure_ascii=True, allow_nan=False)
    return Response(body, problem.kind.status, problem.headers, MEDIA_TYPE)


def request_id_of(request: Request) -> str:
    """The id of this request, from the middleware."""
    return str(request.scope.get("darkroom.request_id", ""))


async def handle_problem(request: Request, error: Exception) -> Response:
    """FastAPI's handler for `Problem`."""
    assert isinstance(error, Problem)  # noqa: S101
    return answer(error, request.url.path, request_id_of(request))


async def handle_storage_unavailable(request: Request, error: Exception) -> Response:
    """S3 where no route expects it, as in signing URLs without credentials."""
    assert isinstance(error, StorageUnavailable)  # noqa: S101
    return answer(Problem("storage_unavailable"), request.url.path, request_id_of(request))


async def handle_http_exception(request: Request, error: Exception) -> Response:
    """Starlette's own refusals (404, 405, …) in the same shape as all others."""
    assert isinstance(error, HTTPException)  # noqa: S101
    code = _CODE_OF_STATUS.get(error.status_code)
    if code is None:
        code = "malformed_request" if error.status_code < 500 else "internal_error"
    details = {
        "not_found": "There is nothing at this path.",
        "method_not_allowed": f"{request.method} is not allowed here.",
    }
    headers = dict(error.headers or {})
    if code == "method_not_allowed":
        headers["Allow"] = ", ".join(_methods_at(request))
    problem = Problem(code, details.get(code), headers=headers)
    return answer(problem, request.url.path, request_id_of(request))


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


async def handle_validation_error(request: Request, error: Exception) -> Response:
    """FastAPI's complaints about query, path and header parameters."""
    assert isinstance(error, RequestValidationError)  # noqa: S101
    fields = [_parameter_error(each) for each in error.errors()[:MAX_ERRORS]]
    detail = f"{fields[0].parameter}: {fields[0].message}"
    problem = Problem("validation_failed", detail, errors=fields)
    return answer(problem, request.url.path, request_id_of(request))


def _parameter_error(error: Any) -> FieldError:
    """FastAPI's location is (query | path | header, name, …)."""
    name = str(error["loc"][1])[:MAX_TEXT]
    code = str(error["type"])
    return FieldError(pointer=None, parameter=name, code=code, message=message_of(error))
