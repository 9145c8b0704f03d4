"""Problems as the web UI tells of them: also with `error` and `body`, and with its statuses."""

from api.core.errors import DIALECTS, Problem, Retold

PATH = "/sdapi/"


def retell(problem: Problem) -> Retold:
    """The problem with the members that the web UI's errors have, too."""
    kind = problem.kind
    status = 504 if kind.code == "job_not_done" else kind.status
    if kind.code == "validation_failed" and problem.errors:
        status = 404 if problem.errors[0].code == "model_not_found" else status
    is_invalid = kind.code in ("validation_failed", "malformed_json")
    name = "RequestValidationError" if is_invalid else "HTTPException"
    return Retold(status, {"error": name, "body": ""})


DIALECTS[PATH] = retell
