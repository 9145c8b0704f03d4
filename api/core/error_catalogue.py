"""The catalogue of problem types: every error a client can get."""

from dataclasses import dataclass


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
            "RFC 8259 JSON in UTF-8, without lone surrogates.",
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
            "range_not_satisfiable",
            416,
            "The file has no such bytes",
            "The `Range` begins behind the file's end; `Content-Range` says how long it is.",
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
            "too_many_waits",
            429,
            "Too many requests wait for jobs",
            "Wait for fewer jobs at once, or ask without `Prefer: wait` and poll.",
        ),
        ProblemType(
            "too_many_at_once",
            429,
            "Too many requests at once",
            "What all share is handed out in turn. Send fewer of this kind at the same time.",
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
            "The key has too few GPU-seconds left today",
            "With what was used today and what unfinished jobs are estimated to take, this work "
            "passes the limit. The day begins anew at 00:00 UTC; see GET /v1/usage.",
        ),
        ProblemType(
            "upload_bytes_exceeded",
            429,
            "The key keeps too many bytes of uploads",
            "Delete initial images or batch files that are not needed; see GET /v1/usage.",
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
            "disk_full",
            503,
            "The server's disk is full",
            "Large bodies lie on disk while they are read. Nothing was accepted: try again later.",
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
            "workers_unknown",
            503,
            "The workers cannot be asked just now",
            "They announce themselves in Redis, which is away. Jobs that run go on.",
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
