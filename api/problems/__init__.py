"""Every error a client can get: one catalogue of problem types, and RFC 9457 answers from it."""

from api.problems.answers import (
    MEDIA_TYPE,
    answer,
    handle_http_exception,
    handle_problem,
    handle_storage_unavailable,
    handle_validation_error,
)
from api.problems.catalogue import CATALOGUE, ProblemType
from api.problems.documentation import responses
from api.problems.problem import (
    FieldError,
    Problem,
    ProblemDocument,
    RuleBroken,
    from_validation,
    not_found,
    pointer,
)

__all__ = [
    "CATALOGUE",
    "MEDIA_TYPE",
    "FieldError",
    "Problem",
    "ProblemDocument",
    "ProblemType",
    "RuleBroken",
    "answer",
    "from_validation",
    "handle_http_exception",
    "handle_problem",
    "handle_storage_unavailable",
    "handle_validation_error",
    "not_found",
    "pointer",
    "responses",
]
