"""Write what follows from the error catalogues: `python -m deploy.error_reference`.

The sources are `api/core/error_catalogue.toml` (problems) and `shared/core/errors.py` (why jobs
fail). From them come docs/errors.md and the exceptions of the client, which imports neither.
"""

import inspect
import json
import textwrap
from collections.abc import Iterable, Iterator
from pathlib import Path

from api.core.error_catalogue import CATALOGUE, ProblemType
from shared.core.errors import JOB_ERRORS

PROJECT = Path(__file__).resolve().parents[1]
PAGE = PROJECT / "docs" / "errors.md"
CLIENT = PROJECT / "client" / "darkroom" / "_problems.py"

_FAMILIES = {
    400: ("BadRequestError", "HTTP 400."),
    401: ("AuthenticationError", "HTTP 401."),
    403: ("PermissionDeniedError", "HTTP 403: the key may not do this."),
    404: ("NotFoundError", "HTTP 404."),
    409: ("ConflictError", "HTTP 409: not possible in the current state."),
    422: ("UnprocessableEntityError", "HTTP 422: well formed, but it breaks a rule."),
    429: ("RateLimitError", "HTTP 429: a limit of the key; `retry_after` says how long to wait."),
    500: ("InternalServerError", "HTTP 5xx: the service failed."),
    503: ("ServiceUnavailableError", "HTTP 503: a part that the service needs is down for now."),
}
"""Status -> the class of all its problems, named as in openai-python."""
_PARENTS = {503: "InternalServerError"}
_NAMES = {
    "malformed_request": "BadRequestError",
    "unauthenticated": "AuthenticationError",
    "not_found": "NotFoundError",
    "rate_limited": "RequestRateExceeded",
}
"""Codes whose class is not called as they are."""


def class_of(problem: ProblemType) -> str:
    """The name of the client's exception."""
    return _NAMES.get(problem.code, "".join(map(str.capitalize, problem.code.split("_"))))


def client_module() -> str:
    """`darkroom._problems`: a class for each status that has several problems, one for each code,
    and the advice of each reason why a job can fail."""
    advice = "".join(
        f"    {json.dumps(code)}: {json.dumps(error.advice)},\n"
        for code, error in JOB_ERRORS.items()
    )
    return (
        f"{_CLIENT_HEAD}\n\n"
        + "\n\n".join(_classes())
        + f"\n\nJOB_ADVICE = {{\n{advice}}}\n"
        + '"""What to do about a failed job, by its `error.code`."""\n'
    )


def _classes() -> Iterator[str]:
    own = {class_of(problem): problem for problem in CATALOGUE.values()}
    for status in sorted(_FAMILIES.keys() | {problem.status for problem in CATALOGUE.values()}):
        family, doc = _FAMILIES.get(status, (None, ""))
        if family is not None:
            parent = _PARENTS.get(status, "APIStatusError")
            yield _class(family, parent, status, doc, own.get(family))
        for name, problem in own.items():
            if problem.status == status and name != family:
                parent = family or "APIStatusError"
                yield _class(name, parent, None if family else status, "", problem)


def _class(
    name: str, parent: str, status: int | None, doc: str, problem: ProblemType | None
) -> str:
    said = f"{problem.title}. {problem.meaning}" if problem else doc
    lines = textwrap.wrap(f'"""{said}"""', 96, break_long_words=False)
    lines.append("")
    if status is not None:
        lines.append(f"known_status = {status}")
    if problem is not None:
        lines.append(f'known_code = "{problem.code}"')
        lines.append(f"advice = {json.dumps(problem.advice, ensure_ascii=False)}")
        if problem.see:
            lines.append(f'see = "{problem.see}"')
    is_retryable = problem.retryable if problem else status in (429, 503)
    if is_retryable != (parent in ("RateLimitError", "ServiceUnavailableError")):
        lines.append(f"retryable = {is_retryable}")
    return f"class {name}({parent}):\n{textwrap.indent(chr(10).join(lines), '    ')}\n"


def page() -> str:
    problems = sorted(CATALOGUE.values(), key=lambda each: each.status)
    jobs = "".join(
        f"| `{code}` | {_summary(error)} {error.advice} | {'yes' if error.retryable else 'no'} |\n"
        for code, error in JOB_ERRORS.items()
    )
    return _PAGE.format(
        names=", ".join(f"`{name}` for `{code}`" for code, name in _NAMES.items()),
        change=_rows(each for each in problems if not each.retryable),
        retry=_rows(each for each in problems if each.retryable),
        jobs=jobs,
    )


def _rows(problems: Iterable[ProblemType]) -> str:
    return "".join(
        f"| `{each.code}` | {each.status} | {each.meaning} {each.advice}".removesuffix(_AGAIN)
        + " |\n"
        for each in problems
    )


def _summary(error: type[Exception]) -> str:
    return (inspect.getdoc(error) or "").partition("\n\n")[0].replace("\n", " ")


_AGAIN = " Try again after `Retry-After` seconds."
"""What the page says once, above the table."""

_CLIENT_HEAD = '''# Generated from api/core/error_catalogue.toml by deploy/error_reference.py.
"""An exception for each problem of the API: what happened, and what to do about it."""

from darkroom._status_error import APIStatusError
'''

_PAGE = """# Errors

Generated from `api/core/error_catalogue.toml` and `shared/core/errors.py` by
`python -m deploy.error_reference`. [The HTTP API](http-api.md#errors) shows what an error looks
like; `GET /problems/CODE` returns the texts below.

The Python client raises a class named after the code, such as `ModelNotAllowed`. Exceptions:
{names}.

## Retrying does not help

| code | status | meaning and advice |
|---|---|---|
{change}
## Retrying can help

Send the same request again, after `Retry-After` seconds if the response has that header.
[`GET /v1/usage`](http-api.md#quotas-and-usage) shows a key's limits.

| code | status | meaning and advice |
|---|---|---|
{retry}
## Why jobs fail

The `error.code` of a job and of each attempt. Darkroom retries where another attempt can help,
up to three attempts.

| code | meaning and advice | retried |
|---|---|---|
{jobs}"""


def main() -> None:
    for path, text in ((PAGE, page()), (CLIENT, client_module())):
        path.write_text(text, "utf-8")
        print(path.relative_to(PROJECT))


if __name__ == "__main__":
    main()
