"""Every exception of this client. Catch `DarkroomError` for all of them.

::

    DarkroomError
    ├── ConfigurationError            no address, or no API key
    ├── MalformedId                   an id that cannot exist; also a ValueError
    ├── APIConnectionError            the service could not be reached, or the connection broke
    │   └── APITimeoutError
    ├── APIResponseValidationError    the answer is not from this service, or damaged
    │   └── ChecksumMismatch
    ├── JobNotSucceeded               .job .advice
    │   ├── JobFailed
    │   ├── JobCanceled
    │   └── JobExpired
    ├── WaitTimeoutError              the wait ended before the job or batch
    ├── InvalidWebhookSignatureError  Darkroom did not send this webhook
    └── APIStatusError                .code .status .detail .errors .advice .retryable …
        ├── BadRequestError           400
        ├── AuthenticationError       401
        ├── PermissionDeniedError     403
        ├── NotFoundError             404
        ├── ConflictError             409
        ├── UnprocessableEntityError  422
        ├── RateLimitError            429
        └── InternalServerError       5xx
            └── ServiceUnavailableError    503

Below these is a class for each code, such as `ModelNotAllowed`: docs/errors.md lists them. A code
that this version does not know raises the class of its status.
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, TypeVar

from darkroom._problems import *
from darkroom._problems import JOB_ADVICE, InternalServerError
from darkroom._status_error import *
from darkroom._status_error import APIStatusError, DarkroomError, FieldError

if TYPE_CHECKING:
    from darkroom.types.batches import Batch
    from darkroom.types.jobs import Job


Kind = TypeVar("Kind", bound=DarkroomError)


class ConfigurationError(DarkroomError):
    """The address of the service or the API key is missing or invalid."""


class MalformedId(DarkroomError, ValueError):
    """An id or a name that is empty or only dots, so nothing can have it."""


class APIConnectionError(DarkroomError):
    """The service could not be reached, or the connection broke before the answer was complete."""


class APITimeoutError(APIConnectionError):
    """The service took too long to answer."""


class APIResponseValidationError(DarkroomError):
    """The answer is not one of this service; perhaps something else is at the address."""


class ChecksumMismatch(APIResponseValidationError):
    """The downloaded bytes are not those on record: their SHA-256 differs."""


class JobNotSucceeded(DarkroomError):
    """The job has ended without images. `job` is its last state."""

    def __init__(self, job: "Job") -> None:
        reason = f": {job.error.code}: {job.error.message}" if job.error else ""
        super().__init__(f"job {job.id} is {job.state}{reason}")
        self.job = job

    @property
    def advice(self) -> str | None:
        """What to do about it; None for a cause that this version does not know."""
        return JOB_ADVICE.get(self.job.error.code) if self.job.error else None


class JobFailed(JobNotSucceeded):
    """The job failed; `job.error` says why, `job.attempts` what was tried."""


class JobCanceled(JobNotSucceeded):
    """The job was canceled."""


class JobExpired(JobNotSucceeded):
    """A deadline of the job passed before it was done."""


class WaitTimeoutError(DarkroomError):
    """The wait timed out. Nothing is lost: `resource` is still in progress, so wait again."""

    def __init__(self, resource: "Job | Batch") -> None:
        super().__init__(f"{resource.id} is still {resource.state}")
        self.resource = resource


class InvalidWebhookSignatureError(DarkroomError):
    """The webhook was not signed with this secret, is too old, or is damaged: answer 400."""


def _classes(base: type[Kind]) -> list[type[Kind]]:
    return [base, *(kind for child in base.__subclasses__() for kind in _classes(child))]


BY_CODE = {kind.known_code: kind for kind in _classes(APIStatusError) if kind.known_code}
BY_STATUS = {
    status: kind
    for kind in _classes(APIStatusError)
    if (status := kind.__dict__.get("known_status")) is not None
}


def api_error(
    status: int, document: Any, headers: Mapping[str, str], retry_after: float | None
) -> APIStatusError:
    """The exception for an answer of status ≥ 400; `document` is its JSON, whatever that is."""
    problem = document if isinstance(document, dict) else {}
    code = str(problem.get("code") or "unknown")
    fallback = InternalServerError if status >= 500 else APIStatusError
    kind = BY_CODE.get(code) or BY_STATUS.get(status, fallback)
    entries = problem.get("errors")
    return kind(
        status=status,
        code=code,
        title=str(problem.get("title") or ""),
        detail=problem.get("detail"),
        request_id=problem.get("request_id") or headers.get("x-request-id"),
        errors=tuple(
            FieldError(
                code=str(entry.get("code", "")),
                message=str(entry.get("message", "")),
                pointer=entry.get("pointer"),
                parameter=entry.get("parameter"),
            )
            for entry in (entries if isinstance(entries, list) else ())
            if isinstance(entry, dict)
        ),
        retry_after=retry_after,
        headers=headers,
    )


def not_succeeded(job: "Job") -> JobNotSucceeded:
    """The exception for a job that has ended without images."""
    kinds = {"failed": JobFailed, "canceled": JobCanceled, "expired": JobExpired}
    return kinds.get(job.state, JobNotSucceeded)(job)


if not TYPE_CHECKING:  # mypy knows the names by itself
    __all__ = ["FieldError"]
    __all__ += [kind.__name__ for kind in _classes(DarkroomError)]
