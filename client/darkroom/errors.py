"""Every exception of this client. Catch `DarkroomError` for all of them.

::

    DarkroomError
    ├── ConfigurationError            no address, or no key
    ├── MalformedId                   what nothing can be called; also a ValueError
    ├── NoAnswer                      the service could not be reached, or fell silent
    │   └── TimedOut
    ├── UnexpectedAnswer              what answered is not this service, or damaged
    │   └── DamagedDownload
    ├── JobNotSucceeded               .job
    │   ├── JobFailed
    │   ├── JobCanceled
    │   └── JobExpired
    ├── StillRunning                  a wait that was over before the job or batch
    ├── InvalidSignature              a webhook that Darkroom did not send
    └── ApiError                      .code .status .detail .request_id .errors .retry_after
        ├── BadRequest                400
        ├── Unauthenticated           401
        ├── Forbidden                 403  InsufficientScope, ModelNotAllowed, SizeNotAllowed
        ├── NotFound                  404  ObjectMissing
        ├── MethodNotAllowed          405
        ├── BodyTooSlow               408
        ├── Conflict                  409  JobNotCancelable, JobNotRetryable, JobNotFinished,
        │                                  TooManyWebhookEndpoints, WebhookEndpointDisabled,
        │                                  BatchHasEnded, NothingToRetry
        ├── BodyTooLarge              413
        ├── UnsupportedMediaType      415
        ├── RangeNotSatisfiable       416
        ├── Unprocessable             422  MalformedJson, ValidationFailed, BatchRejected,
        │                                  ImageRefused, MalformedCursor, ReceiptMissing,
        │                                  MalformedIdempotencyKey, IdempotencyKeyReuse,
        │                                  PromptUnknown, NotReproducible
        ├── TooManyRequests           429  TooManyAtOnce, TooManyStreams, TooManyWaits, RateLimited,
        │                                  TooManyJobs, QueuedCostExceeded, GpuSecondsExceeded,
        │                                  UploadBytesExceeded
        └── ServerError               5xx  InternalError
            └── Unavailable           503  DatabaseUnavailable, StorageUnavailable,
                                           DiskFull, EmbeddingUnavailable,
                                           DecoderUnavailable, Busy, Overloaded,
                                           QuotaUnavailable, WorkersUnknown, NotReady

A problem with a code that this version does not know is the class of its status.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

if TYPE_CHECKING:
    from darkroom.types.batches import Batch
    from darkroom.types.jobs import Job

__all__ = [
    "ApiError",
    "BadRequest",
    "BatchHasEnded",
    "BatchRejected",
    "BodyTooLarge",
    "BodyTooSlow",
    "Busy",
    "ConfigurationError",
    "Conflict",
    "DamagedDownload",
    "DarkroomError",
    "DatabaseUnavailable",
    "DecoderUnavailable",
    "DiskFull",
    "EmbeddingUnavailable",
    "FieldError",
    "Forbidden",
    "GpuSecondsExceeded",
    "IdempotencyKeyReuse",
    "ImageRefused",
    "InsufficientScope",
    "InternalError",
    "InvalidSignature",
    "JobCanceled",
    "JobExpired",
    "JobFailed",
    "JobNotCancelable",
    "JobNotFinished",
    "JobNotRetryable",
    "JobNotSucceeded",
    "MalformedCursor",
    "MalformedId",
    "MalformedIdempotencyKey",
    "MalformedJson",
    "MethodNotAllowed",
    "ModelNotAllowed",
    "NoAnswer",
    "NotFound",
    "NotReady",
    "NotReproducible",
    "NothingToRetry",
    "ObjectMissing",
    "Overloaded",
    "PromptUnknown",
    "QueuedCostExceeded",
    "QuotaUnavailable",
    "RangeNotSatisfiable",
    "RateLimited",
    "ReceiptMissing",
    "ServerError",
    "SizeNotAllowed",
    "StillRunning",
    "StorageUnavailable",
    "TimedOut",
    "TooManyAtOnce",
    "TooManyJobs",
    "TooManyRequests",
    "TooManyStreams",
    "TooManyWaits",
    "TooManyWebhookEndpoints",
    "Unauthenticated",
    "Unavailable",
    "UnexpectedAnswer",
    "Unprocessable",
    "UnsupportedMediaType",
    "UploadBytesExceeded",
    "ValidationFailed",
    "WebhookEndpointDisabled",
    "WorkersUnknown",
]


class DarkroomError(Exception):
    """The base of everything that this client raises."""


class ConfigurationError(DarkroomError):
    """There is no address of the service, or no API key."""


class MalformedId(DarkroomError, ValueError):
    """An id or a name that is empty or nothing but dots: nothing is called so."""


class NoAnswer(DarkroomError):
    """The service could not be reached, or the connection broke before the answer was whole."""


class TimedOut(NoAnswer):
    """The service took too long to answer."""


class UnexpectedAnswer(DarkroomError):
    """The answer is not what this service says; perhaps something else is at the address."""


class DamagedDownload(UnexpectedAnswer):
    """The bytes that came are not those on record: their SHA-256 differs."""


class JobNotSucceeded(DarkroomError):
    """The job has ended without its pictures. `job` is how it stands."""

    def __init__(self, job: "Job") -> None:
        reason = f": {job.error.code}: {job.error.message}" if job.error else ""
        super().__init__(f"job {job.id} is {job.state}{reason}")
        self.job = job


class JobFailed(JobNotSucceeded):
    """The job failed; `job.error` says why, `job.attempts` what was tried."""


class JobCanceled(JobNotSucceeded):
    """Somebody canceled the job."""


class JobExpired(JobNotSucceeded):
    """A deadline of the job passed before it was done."""


class StillRunning(DarkroomError):
    """The time to wait was over first. Nothing is lost: `resource` goes on, wait again."""

    def __init__(self, resource: "Job | Batch") -> None:
        super().__init__(f"{resource.id} is still {resource.state}")
        self.resource = resource


class InvalidSignature(DarkroomError):
    """The webhook was not signed with this secret, is too old, or is damaged: answer 400."""


@dataclass(frozen=True)
class FieldError:
    """One rule that a request broke."""

    code: str
    message: str
    pointer: str | None = None
    """JSON pointer (RFC 6901) into the body."""
    parameter: str | None = None
    """Name of a query, path, header or form parameter."""


class ApiError(DarkroomError):
    """The service answered with a problem (RFC 9457)."""

    code: str = "unknown"
    """Stable: what a program may compare."""
    known_code: ClassVar[str | None] = None
    known_status: ClassVar[int | None] = None

    def __init__(
        self,
        *,
        status: int,
        code: str,
        title: str = "",
        detail: str | None = None,
        request_id: str | None = None,
        errors: tuple[FieldError, ...] = (),
        retry_after: float | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        said = detail or title or f"HTTP {status}"
        super().__init__(f"{said} [{code}, {status}, request {request_id or 'unknown'}]")
        self.status = status
        self.code = code
        self.title = title
        self.detail = detail
        self.request_id = request_id
        """Names the request in the server's log."""
        self.errors = errors
        self.retry_after = retry_after
        """Seconds, or None."""
        self.headers = dict(headers or {})


class BadRequest(ApiError):
    """The HTTP request itself could not be read."""

    known_code, known_status = "malformed_request", 400


class Unauthenticated(ApiError):
    """The API key is missing, mistyped, revoked or expired."""

    known_code, known_status = "unauthenticated", 401


class Forbidden(ApiError):
    """The key may not do this."""

    known_status = 403


class InsufficientScope(Forbidden):
    """The key lacks a scope, which `detail` names."""

    known_code = "insufficient_scope"


class ModelNotAllowed(Forbidden):
    """The key may not use this model."""

    known_code = "model_not_allowed"


class SizeNotAllowed(Forbidden):
    """The key may not make pictures of this size."""

    known_code = "size_not_allowed"


class NotFound(ApiError):
    """There is no such thing, or it belongs to another tenant."""

    known_code, known_status = "not_found", 404


class ObjectMissing(NotFound):
    """The picture is on record, and its file is gone from object storage."""

    known_code = "object_missing"


class MethodNotAllowed(ApiError):
    """The path exists, but not with this method: probably an older server."""

    known_code, known_status = "method_not_allowed", 405


class BodyTooSlow(ApiError):
    """The body came too slowly."""

    known_code, known_status = "body_too_slow", 408


class Conflict(ApiError):
    """What was asked does not fit the state that the thing is in."""

    known_status = 409


class JobNotCancelable(Conflict):
    """The job has already ended."""

    known_code = "job_not_cancelable"


class JobNotRetryable(Conflict):
    """Only a job that has failed, expired or been canceled can be retried."""

    known_code = "job_not_retryable"


class JobNotFinished(Conflict):
    """What waits or runs cannot be deleted."""

    known_code = "job_not_finished"


class TooManyWebhookEndpoints(Conflict):
    """The tenant has as many endpoints as it may have."""

    known_code = "too_many_webhook_endpoints"


class WebhookEndpointDisabled(Conflict):
    """Enable the endpoint before anything is sent to it again."""

    known_code = "webhook_endpoint_disabled"


class BatchHasEnded(Conflict):
    """The batch can be changed no more."""

    known_code = "batch_has_ended"


class NothingToRetry(Conflict):
    """No job of the batch has failed or expired."""

    known_code = "nothing_to_retry"


class BodyTooLarge(ApiError):
    """The body is over the limit that `detail` gives."""

    known_code, known_status = "body_too_large", 413


class UnsupportedMediaType(ApiError):
    """The body has the wrong content type."""

    known_code, known_status = "unsupported_media_type", 415


class RangeNotSatisfiable(ApiError):
    """The file has no such bytes."""

    known_status = 416
    known_code = "range_not_satisfiable"


class Unprocessable(ApiError):
    """The request is well formed and cannot be done."""

    known_status = 422


class MalformedJson(Unprocessable):
    """The body is not JSON as RFC 8259 has it: no NaN, no lone surrogates."""

    known_code = "malformed_json"


class ValidationFailed(Unprocessable):
    """`errors` says which fields break which rules."""

    known_code = "validation_failed"


class BatchRejected(Unprocessable):
    """Nothing of the batch runs. `errors` has the first findings, `batch_id` leads to all."""

    known_code = "batch_rejected"

    @property
    def batch_id(self) -> str | None:
        """The failed batch that keeps the whole report."""
        location = self.headers.get("location", "")
        return location.rstrip("/").rpartition("/")[2] or None


class ImageRefused(Unprocessable):
    """Not PNG, JPEG or WebP, or of a size that cannot be used."""

    known_code = "image_refused"


class MalformedCursor(Unprocessable):
    """The cursor belongs to another list, or to other filters."""

    known_code = "malformed_cursor"


class MalformedIdempotencyKey(Unprocessable):
    """An idempotency key has 1 to 255 printable ASCII characters."""

    known_code = "malformed_idempotency_key"


class IdempotencyKeyReuse(Unprocessable):
    """The idempotency key was used for another request."""

    known_code = "idempotency_key_reuse"


class ReceiptMissing(Unprocessable):
    """The picture carries no receipt."""

    known_code = "receipt_missing"


class PromptUnknown(Unprocessable):
    """Pictures are compared by prompts, and nobody knows this one's."""

    known_code = "prompt_unknown"


class NotReproducible(Unprocessable):
    """What the picture was made from is not there any more."""

    known_code = "not_reproducible"


class TooManyRequests(ApiError):
    """A limit of the key; `retry_after` says how long to wait."""

    known_status = 429


class TooManyAtOnce(TooManyRequests):
    """Too many of the key's requests of one kind at the same time."""

    known_code = "too_many_at_once"


class TooManyStreams(TooManyRequests):
    """Too many of the key's event streams are open."""

    known_code = "too_many_streams"


class TooManyWaits(TooManyRequests):
    """Too many of the key's requests wait for jobs."""

    known_code = "too_many_waits"


class RateLimited(TooManyRequests):
    """Too many requests in a minute."""

    known_code = "rate_limited"


class TooManyJobs(TooManyRequests):
    """Too many of the key's jobs are queued or running."""

    known_code = "too_many_jobs"


class QueuedCostExceeded(TooManyRequests):
    """Too much of the key's work is waiting."""

    known_code = "queued_cost_exceeded"


class GpuSecondsExceeded(TooManyRequests):
    """With its unfinished jobs, the work would pass the key's GPU-seconds of today."""

    known_code = "gpu_seconds_exceeded"


class UploadBytesExceeded(TooManyRequests):
    """The key keeps too many bytes of uploads: delete some."""

    known_code = "upload_bytes_exceeded"


class ServerError(ApiError):
    """The service could not do what it should."""


class InternalError(ServerError):
    """A bug of the service: report the `request_id`."""

    known_code, known_status = "internal_error", 500


class Unavailable(ServerError):
    """A part that the service needs is away for now."""

    known_status = 503


class DatabaseUnavailable(Unavailable):
    """The database is away; nothing was accepted."""

    known_code = "database_unavailable"


class StorageUnavailable(Unavailable):
    """Object storage is away."""

    known_code = "storage_unavailable"


class DiskFull(Unavailable):
    """The server has no room for a large body; nothing was accepted."""

    known_code = "disk_full"


class EmbeddingUnavailable(Unavailable):
    """Queries cannot be embedded; history without a query works."""

    known_code = "embedding_unavailable"


class DecoderUnavailable(Unavailable):
    """All image decoders are busy."""

    known_code = "decoder_unavailable"


class Busy(Unavailable):
    """Too many large bodies or pictures at once."""

    known_code = "busy"


class Overloaded(Unavailable):
    """More work waits than the server accepts."""

    known_code = "overloaded"


class QuotaUnavailable(Unavailable):
    """The key's request rate cannot be checked."""

    known_code = "quota_unavailable"


class WorkersUnknown(Unavailable):
    """Nobody can say which workers live."""

    known_code = "workers_unknown"


class NotReady(Unavailable):
    """A part is down; `errors` names each."""

    known_code = "not_ready"


def _classes(base: type[ApiError]) -> list[type[ApiError]]:
    return [base, *(kind for child in base.__subclasses__() for kind in _classes(child))]


BY_CODE = {kind.known_code: kind for kind in _classes(ApiError) if kind.known_code}
BY_STATUS = {
    status: kind
    for kind in reversed(_classes(ApiError))
    if (status := kind.__dict__.get("known_status")) is not None
}


def api_error(
    status: int, document: Any, headers: Mapping[str, str], retry_after: float | None
) -> ApiError:
    """The exception for an answer of status ≥ 400; `document` is its JSON, whatever that is."""
    told = document if isinstance(document, dict) else {}
    code = str(told.get("code") or "unknown")
    fallback = ServerError if status >= 500 else ApiError
    kind = BY_CODE.get(code) or BY_STATUS.get(status, fallback)
    entries = told.get("errors")
    return kind(
        status=status,
        code=code,
        title=str(told.get("title") or ""),
        detail=told.get("detail"),
        request_id=told.get("request_id") or headers.get("x-request-id"),
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
    """The exception for a job that has ended without its pictures."""
    kinds = {"failed": JobFailed, "canceled": JobCanceled, "expired": JobExpired}
    return kinds.get(job.state, JobNotSucceeded)(job)
