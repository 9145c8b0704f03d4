"""Every error a client can get: one catalogue of problem types, and RFC 9457 answers from it."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fastapi import Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import Response
from pydantic import BaseModel, Field
from starlette.exceptions import HTTPException

MEDIA_TYPE = "application/problem+json"
_MAX_ERRORS = 20
_MAX_TEXT = 300


@dataclass(frozen=True)
class ProblemType:
    """One way in which a request can fail. `code` never changes once released."""

    code: str
    status: int
    title: str
    doc: str


CATALOGUE: dict[str, ProblemType] = {
    problem.code: problem
    for problem in (
        ProblemType(
            "malformed_request",
            400,
            "The request is malformed",
            "The HTTP request itself cannot be read. Check how your client builds it.",
        ),
        ProblemType(
            "unauthenticated",
            401,
            "A valid API key is required",
            "Send `Authorization: Bearer drk_…`. The key may be mistyped, revoked or expired.",
        ),
        ProblemType(
            "insufficient_scope",
            403,
            "The API key lacks a scope",
            "The key is valid but may not do this; `detail` names the scope that is missing.",
        ),
        ProblemType(
            "model_not_allowed",
            403,
            "The API key may not use this model",
            "The key's quotas name the models that it may use; see GET /v1/usage.",
        ),
        ProblemType(
            "size_not_allowed",
            403,
            "The API key may not make pictures of this size",
            "The key's quotas limit width × height; see GET /v1/usage.",
        ),
        ProblemType(
            "not_found",
            404,
            "There is no such thing",
            "Nothing here has this id or path, or it belongs to another tenant.",
        ),
        ProblemType(
            "object_missing",
            404,
            "The picture's file is gone",
            "The picture is on record, but object storage no longer has its file.",
        ),
        ProblemType(
            "method_not_allowed",
            405,
            "The method is not allowed here",
            "The path exists; the `Allow` header lists its methods.",
        ),
        ProblemType(
            "body_too_slow",
            408,
            "The body came too slowly",
            "Send it without pauses, at 32 kB a second at least.",
        ),
        ProblemType(
            "job_not_cancelable",
            409,
            "The job has already ended",
            "A job that has succeeded, failed or expired cannot be canceled.",
        ),
        ProblemType(
            "job_not_retryable",
            409,
            "The job cannot be retried",
            "Only a job that has failed, expired or been canceled can be retried.",
        ),
        ProblemType(
            "job_not_finished",
            409,
            "The job has not ended",
            "What waits or runs cannot be deleted. Cancel it first, and wait until it has ended.",
        ),
        ProblemType(
            "too_many_webhook_endpoints",
            409,
            "There are too many webhook endpoints",
            "Delete endpoints that are not needed; one endpoint can ask for many kinds of events.",
        ),
        ProblemType(
            "webhook_endpoint_disabled",
            409,
            "The webhook endpoint is disabled",
            "Enable it with PATCH before anything is sent to it again; a test is always sent.",
        ),
        ProblemType(
            "batch_has_ended",
            409,
            "The batch has ended",
            "It can be changed no more; POST …/retry-failed runs again what failed.",
        ),
        ProblemType(
            "nothing_to_retry",
            409,
            "There is nothing to retry",
            "No job of the batch has failed or expired.",
        ),
        ProblemType(
            "body_too_large",
            413,
            "The body is too large",
            "`detail` gives the limit. Send a large initial image through POST /v1/uploads.",
        ),
        ProblemType(
            "unsupported_media_type",
            415,
            "The body has the wrong content type",
            "Send `Content-Type: application/json`, or `multipart/form-data` for files.",
        ),
        ProblemType(
            "malformed_json",
            422,
            "The body is not valid JSON",
            "RFC 8259 JSON in UTF-8: no NaN, no Infinity, no lone surrogates.",
        ),
        ProblemType(
            "validation_failed",
            422,
            "The request breaks a rule",
            "`errors` says which fields, each with a JSON pointer, a code and a message.",
        ),
        ProblemType(
            "batch_rejected",
            422,
            "The batch was not accepted",
            "Nothing of it runs. `errors` has the first findings; the batch at `Location` has all.",
        ),
        ProblemType(
            "image_refused",
            422,
            "The picture cannot be used",
            "PNG, JPEG or WebP, one frame, 64 to 4096 pixels a side, within the size limit.",
        ),
        ProblemType(
            "malformed_cursor",
            422,
            "The cursor is not valid here",
            "Give `after` the `next_cursor` of a page of the same list with the same filters.",
        ),
        ProblemType(
            "malformed_idempotency_key",
            422,
            "The idempotency key is malformed",
            "`Idempotency-Key` has 1 to 255 printable ASCII characters.",
        ),
        ProblemType(
            "idempotency_key_reuse",
            422,
            "The idempotency key was used for another request",
            "A key stands for one request body. Use a new key for a new request.",
        ),
        ProblemType(
            "receipt_missing",
            422,
            "The picture carries no receipt",
            "It was not made by Darkroom, or another program has dropped its metadata.",
        ),
        ProblemType(
            "prompt_unknown",
            422,
            "The picture's prompt is not known",
            "Pictures are compared by prompts. This file is none of yours and has no receipt.",
        ),
        ProblemType(
            "not_reproducible",
            422,
            "The picture cannot be made again here",
            "What it was made from (the model, or the initial image) is not there any more.",
        ),
        ProblemType(
            "too_many_streams",
            429,
            "Too many event streams are open",
            "Close some of this key's event streams, or poll the job instead.",
        ),
        ProblemType(
            "rate_limited",
            429,
            "Too many requests in a minute",
            "Slow down; the `RateLimit` header says how much is left, `Retry-After` how long.",
        ),
        ProblemType(
            "too_many_jobs",
            429,
            "The key has too many jobs at once",
            "Wait until some of its queued or running jobs end; see GET /v1/usage.",
        ),
        ProblemType(
            "queued_cost_exceeded",
            429,
            "The key has too much work waiting",
            "Pixels × steps × images of its queued jobs are limited; see GET /v1/usage.",
        ),
        ProblemType(
            "gpu_seconds_exceeded",
            429,
            "The key has used up today's GPU-seconds",
            "They begin anew at 00:00 UTC; see GET /v1/usage.",
        ),
        ProblemType(
            "internal_error",
            500,
            "Something went wrong on our side",
            "A bug. Report it with the `request_id`; the server's log has the details.",
        ),
        ProblemType(
            "database_unavailable",
            503,
            "The database is not available",
            "Nothing was accepted. Try again after `Retry-After` seconds.",
        ),
        ProblemType(
            "storage_unavailable",
            503,
            "Object storage is not available",
            "Try again after `Retry-After` seconds.",
        ),
        ProblemType(
            "embedding_unavailable",
            503,
            "Queries cannot be embedded just now",
            "`detail` says why. History without `q` works; try again after `Retry-After` seconds.",
        ),
        ProblemType(
            "decoder_unavailable",
            503,
            "Images cannot be decoded just now",
            "All image decoders are busy. Try again after `Retry-After` seconds.",
        ),
        ProblemType(
            "busy",
            503,
            "Too many large bodies or pictures at once",
            "Nothing was queued. Try again after `Retry-After` seconds.",
        ),
        ProblemType(
            "overloaded",
            503,
            "More work waits than the server accepts",
            "Nothing was queued. `Retry-After` is computed from how fast work is being done.",
        ),
        ProblemType(
            "quota_unavailable",
            503,
            "The key's request rate cannot be checked",
            "Redis is away. Until then, keys with a request rate can read, but queue nothing.",
        ),
        ProblemType(
            "not_ready",
            503,
            "The service is not ready",
            "A part that it needs is down; `errors` names each.",
        ),
    )
}
"""Code -> problem type; the documentation and OpenAPI are made from it."""

_CODE_OF_STATUS = {
    401: "unauthenticated",
    403: "insufficient_scope",
    404: "not_found",
    405: "method_not_allowed",
    413: "body_too_large",
    415: "unsupported_media_type",
    422: "validation_failed",
}


class FieldError(BaseModel):
    """One field that breaks a rule."""

    pointer: str | None = Field(description="JSON pointer (RFC 6901) into the body.")
    parameter: str | None = Field(
        default=None, description="Name of a query, path, header or form parameter."
    )
    code: str
    message: str


class ProblemDocument(BaseModel):
    """An RFC 9457 problem."""

    type: str
    title: str
    status: int
    detail: str | None
    instance: str
    code: str
    request_id: str
    errors: list[FieldError]


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


def answer(problem: Problem, path: str, request_id: str) -> Response:
    """The problem as an HTTP answer."""
    document = {
        "type": f"/problems/{problem.kind.code}",
        "title": problem.kind.title,
        "status": problem.kind.status,
        "detail": problem.detail,
        "instance": path[:_MAX_TEXT],
        "code": problem.kind.code,
        "request_id": request_id,
        "errors": [error.model_dump() for error in problem.errors[:_MAX_ERRORS]],
    }
    # ASCII escapes: a path or field name with a lone surrogate is still an answer, not a 500.
    body = json.dumps(document, ensure_ascii=True, allow_nan=False)
    return Response(body, problem.kind.status, problem.headers, MEDIA_TYPE)


def from_validation(errors: Sequence[Any]) -> Problem:
    """pydantic's errors about a body, as a problem that repeats nothing of it but field names."""
    fields = [_field_error(error) for error in errors[:_MAX_ERRORS]]
    return Problem("validation_failed", f"{fields[0].pointer}: {fields[0].message}", errors=fields)


def _field_error(error: Any) -> FieldError:
    where = pointer(*(part for part in error["loc"] if part != "[key]"))[:_MAX_TEXT]
    code = str(error["type"])
    broken = error.get("ctx", {}).get("error")
    if isinstance(broken, RuleBroken):
        where, code = broken.pointer or where, broken.code
    return FieldError(pointer=where, code=code, message=_message(error))


def _parameter_error(error: Any) -> FieldError:
    """FastAPI's location is (query | path | header, name, …)."""
    name = str(error["loc"][1])[:_MAX_TEXT]
    code = str(error["type"])
    return FieldError(pointer=None, parameter=name, code=code, message=_message(error))


def _message(error: Any) -> str:
    return str(error["msg"]).removeprefix("Value error, ")[:_MAX_TEXT]


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


def request_id_of(request: Request) -> str:
    """The id of this request, from the middleware."""
    return str(request.scope.get("darkroom.request_id", ""))


async def handle_problem(request: Request, error: Exception) -> Response:
    """FastAPI's handler for `Problem`."""
    assert isinstance(error, Problem)  # noqa: S101
    return answer(error, request.url.path, request_id_of(request))


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
    problem = Problem(code, details.get(code), headers=error.headers)
    return answer(problem, request.url.path, request_id_of(request))


async def handle_validation_error(request: Request, error: Exception) -> Response:
    """FastAPI's complaints about query, path and header parameters."""
    assert isinstance(error, RequestValidationError)  # noqa: S101
    fields = [_parameter_error(each) for each in error.errors()[:_MAX_ERRORS]]
    detail = f"{fields[0].parameter}: {fields[0].message}"
    problem = Problem("validation_failed", detail, errors=fields)
    return answer(problem, request.url.path, request_id_of(request))


def responses(*codes: str) -> dict[int | str, dict[str, Any]]:
    """OpenAPI's description of the problems an operation can answer with."""
    by_status: dict[int | str, dict[str, Any]] = {}
    everywhere = ("unauthenticated", "rate_limited")
    with_body = ("body_too_slow", "busy") if "body_too_large" in codes else ()
    for kind in (CATALOGUE[code] for code in (*everywhere, *codes, *with_body)):
        entry = by_status.setdefault(
            kind.status,
            {"model": ProblemDocument, "description": "", "content": {MEDIA_TYPE: {}}},
        )
        line = f"`{kind.code}`: {kind.title}."
        entry["description"] = f"{entry['description']} {line}".strip()
    return by_status
