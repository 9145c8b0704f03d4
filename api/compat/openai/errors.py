"""Problems as OpenAI tells of them: an `error` member, its statuses, and whether to try again."""

from typing import Any

from api.core.errors import DIALECTS, Problem, Retold

PATHS = ("/openai/", "/v1/images/generations", "/v1/images/edits")

_LONGEST_RETRY_AFTER = 120
"""Seconds; OpenAI's SDK waits no longer."""
_PARAMS = {
    "num_images": "n",
    "width": "size",
    "height": "size",
    "init_image": "image",
    "output_quality": "output_compression",
    "mask_image": "mask",
    "mask_from_alpha": "mask",
}
"""OpenAI's names of a job's fields."""
_CODES = {
    "unauthenticated": "invalid_api_key",
    "malformed_json": "invalid_json",
    "refused_by_filter": "content_policy_violation",
}
_QUOTAS = ("gpu_seconds_exceeded", "upload_bytes_exceeded")
_NOT_AGAIN = ("generation_failed", "job_stopped", "job_not_done")
"""Sending the request again would only join the same job."""


def retell(problem: Problem) -> Retold:
    """The problem in OpenAI's shape, with the members of RFC 9457."""
    status, kind, code = _classify(problem)
    is_final = code == "insufficient_quota" or problem.kind.code in _NOT_AGAIN
    headers = {"x-should-retry": "false"} if is_final else {}
    first = problem.errors[0] if problem.errors else None
    name = (first.parameter or (first.pointer or "").strip("/")) if first else ""
    error: dict[str, Any] = {
        "message": problem.detail or problem.kind.title,
        "type": kind,
        "param": _PARAMS.get(name, name) or None,
        "code": code,
    }
    return Retold(status, {"error": error}, headers)


def _classify(problem: Problem) -> tuple[int, str, str]:
    """(status, type, code) as OpenAI has them."""
    status, code = problem.kind.status, problem.kind.code
    if code == "validation_failed" and problem.errors:
        code = problem.errors[0].code
    if code == "model_not_found":
        return 404, "invalid_request_error", code
    status = {422: 400}.get(status, 504 if code == "job_not_done" else status)
    if status == 429:
        retry_after = int(problem.headers.get("Retry-After", "0"))
        is_spent = code in _QUOTAS and retry_after > _LONGEST_RETRY_AFTER
        code = "insufficient_quota" if is_spent else "rate_limit_exceeded"
        return status, code, code
    kind = "server_error" if status >= 500 else "invalid_request_error"
    return status, kind, _CODES.get(code, code)


DIALECTS.update(dict.fromkeys(PATHS, retell))
