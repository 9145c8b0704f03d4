"""Problems as RFC 9457 answers, and the handlers that make FastAPI's own refusals into them."""

import json
from typing import Any

from fastapi import Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import Response
from starlette.exceptions import HTTPException
from starlette.routing import Match

from api.metrics.families import PROBLEMS
from api.problems.problem import MAX_ERRORS, MAX_TEXT, FieldError, Problem, message_of
from shared.errors import StorageUnavailable

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
