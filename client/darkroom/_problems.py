# Generated from api/core/error_catalogue.toml by deploy/error_reference.py.
"""An exception for each problem of the API: what happened, and what to do about it."""

from darkroom._status_error import APIStatusError


class BadRequestError(APIStatusError):
    """The request is malformed. The HTTP request cannot be parsed."""

    known_status = 400
    known_code = "malformed_request"
    advice = "Check how your client builds it."


class AuthenticationError(APIStatusError):
    """A valid API key is required. The key is missing, mistyped, revoked, expired, or from another
    server."""

    known_status = 401
    known_code = "unauthenticated"
    advice = "Send `Authorization: Bearer drk_…` with a valid key."


class PermissionDeniedError(APIStatusError):
    """HTTP 403: the key may not do this."""

    known_status = 403


class InsufficientScope(PermissionDeniedError):
    """The API key lacks a scope. `detail` names the missing scope."""

    known_code = "insufficient_scope"
    advice = "Use a key that has it, or ask an administrator for one."


class OriginNotAllowed(PermissionDeniedError):
    """Scripts of this site may not do this. The header `Origin` names a site that is not this
    server's own."""

    known_code = "origin_not_allowed"
    advice = "Let the operator name the site in `DARKROOM_CORS_ORIGINS`."


class ModelNotAllowed(PermissionDeniedError):
    """The API key may not use this model. The key's quotas list the models it may use."""

    known_code = "model_not_allowed"
    advice = "Choose one of those."
    see = "GET /v1/usage"


class SizeNotAllowed(PermissionDeniedError):
    """The API key may not make images of this size. The key's quotas limit width × height."""

    known_code = "size_not_allowed"
    advice = "Choose a smaller size."
    see = "GET /v1/usage"


class LoraUploadsDisabled(PermissionDeniedError):
    """LoRAs cannot be uploaded here. The operator has not turned `DARKROOM_LORA_UPLOADS` on."""

    known_code = "lora_uploads_disabled"
    advice = "Use a LoRA of the catalogue, or ask the operator."


class NotFoundError(APIStatusError):
    """Not found. Nothing here has this ID or path, or it belongs to another tenant."""

    known_status = 404
    known_code = "not_found"
    advice = "Check the ID; it may have been deleted."


class ObjectMissing(NotFoundError):
    """The image's file is gone. The image is on record, but object storage no longer has its
    file."""

    known_code = "object_missing"
    advice = "Make it again from its receipt."


class MethodNotAllowed(APIStatusError):
    """The method is not allowed here. The `Allow` header lists the path's methods."""

    known_status = 405
    known_code = "method_not_allowed"
    advice = "Use one of them."


class BodyTooSlow(APIStatusError):
    """The body arrived too slowly. The server waits only so long for a body."""

    known_status = 408
    known_code = "body_too_slow"
    advice = "Send at least 32 kB per second, without pauses."
    retryable = True


class ConflictError(APIStatusError):
    """HTTP 409: not possible in the current state."""

    known_status = 409


class JobNotCancelable(ConflictError):
    """The job has already ended. A job that succeeded, failed or expired cannot be canceled."""

    known_code = "job_not_cancelable"
    advice = "There is nothing left to cancel."


class JobNotRetryable(ConflictError):
    """The job cannot be retried. Only a failed, expired or canceled job can be retried."""

    known_code = "job_not_retryable"
    advice = "Submit a new job instead."


class JobNotFinished(ConflictError):
    """The job has not ended. A queued or running job cannot be deleted, nor can what it needs."""

    known_code = "job_not_finished"
    advice = "Cancel it or wait until it ends, then delete."
    retryable = True


class JobStopped(ConflictError):
    """The job was stopped. It was canceled, or expired before it was done; there are no images."""

    known_code = "job_stopped"
    advice = "Submit it again."


class TooManyWebhookEndpoints(ConflictError):
    """There are too many webhook endpoints. The tenant has reached its limit of endpoints."""

    known_code = "too_many_webhook_endpoints"
    advice = "Delete unused ones; one endpoint can receive every kind of event."


class WebhookEndpointDisabled(ConflictError):
    """The webhook endpoint is disabled. A disabled endpoint receives only tests."""

    known_code = "webhook_endpoint_disabled"
    advice = "Enable it first."


class BatchHasEnded(ConflictError):
    """The batch has ended. A batch that has ended cannot be changed."""

    known_code = "batch_has_ended"
    advice = "Retry its failed jobs, or submit a new batch."


class NothingToRetry(ConflictError):
    """There is nothing to retry. No job of the batch failed or expired."""

    known_code = "nothing_to_retry"
    advice = "Leave the batch as it is."


class LoraExists(ConflictError):
    """The name is taken. The catalogue or your tenant has a LoRA of this name."""

    known_code = "lora_exists"
    advice = "Choose another name, or delete yours first."


class BodyTooLarge(APIStatusError):
    """The body is too large. `detail` gives the limit."""

    known_status = 413
    known_code = "body_too_large"
    advice = "Send a smaller file; upload large initial images first, with `POST /v1/uploads`."


class UnsupportedMediaType(APIStatusError):
    """The body has the wrong content type. This operation does not accept this `Content-Type`."""

    known_status = 415
    known_code = "unsupported_media_type"
    advice = "Send `application/json`, or `multipart/form-data` for files."


class RangeNotSatisfiable(APIStatusError):
    """The range is beyond the end of the file. `Content-Range` gives the file's length."""

    known_status = 416
    known_code = "range_not_satisfiable"
    advice = "Request a range that begins within the file."


class UnprocessableEntityError(APIStatusError):
    """HTTP 422: well formed, but it breaks a rule."""

    known_status = 422


class MalformedJson(UnprocessableEntityError):
    """The body is not valid JSON. The body must be RFC 8259 JSON in UTF-8, without NaN or lone
    surrogates."""

    known_code = "malformed_json"
    advice = "Check how your client writes it."


class ValidationFailed(UnprocessableEntityError):
    """The request breaks a rule. `errors` lists the fields, each with a JSON pointer, a code and a
    message."""

    known_code = "validation_failed"
    advice = "Correct those fields."


class BatchRejected(UnprocessableEntityError):
    """The batch was rejected. Nothing runs: `errors` has the first findings, the batch at
    `Location` has all."""

    known_code = "batch_rejected"
    advice = "Correct those lines, or submit with `on_error` set to `skip`."


class LoraRefused(UnprocessableEntityError):
    """The LoRA cannot be used. LoRAs must be whole safetensors files whose matrices fit the
    family."""

    known_code = "lora_refused"
    advice = "`detail` says what is wrong."


class ImageRefused(UnprocessableEntityError):
    """The image cannot be used. Images must be PNG, JPEG or WebP, with one frame and 64 to 4096
    pixels a side."""

    known_code = "image_refused"
    advice = "Convert or resize it; `detail` says what is wrong."


class MalformedCursor(UnprocessableEntityError):
    """The cursor is not valid here. `after` must be a `next_cursor` of the same list with the same
    filters."""

    known_code = "malformed_cursor"
    advice = "Start again without a cursor."


class MalformedIdempotencyKey(UnprocessableEntityError):
    """The idempotency key is malformed. `Idempotency-Key` must have 1 to 255 printable ASCII
    characters."""

    known_code = "malformed_idempotency_key"
    advice = "Use a UUID, for example."


class IdempotencyKeyReuse(UnprocessableEntityError):
    """The idempotency key was used for another request. A key stands for one request body."""

    known_code = "idempotency_key_reuse"
    advice = "Use a new key for a new request."


class ReceiptMissing(UnprocessableEntityError):
    """The image has no receipt. Darkroom did not make this file, or another program removed its
    metadata."""

    known_code = "receipt_missing"
    advice = "Use the file as Darkroom wrote it; as an initial image it works all the same."


class PromptUnknown(UnprocessableEntityError):
    """The image's prompt is unknown. Images are compared by prompt; this file has no receipt and is
    not one of yours."""

    known_code = "prompt_unknown"
    advice = "Search with words instead."


class NotReproducible(UnprocessableEntityError):
    """The image cannot be made again here. Its model or its initial image no longer exists."""

    known_code = "not_reproducible"
    advice = "Submit a new job with the settings of its receipt."


class RefusedByFilter(UnprocessableEntityError):
    """A filter refused the prompt or the images. This server's operator does not let it pass;
    `detail` has the filter's reason."""

    known_code = "refused_by_filter"
    advice = "Change the prompt; the same request is refused again."


class RateLimitError(APIStatusError):
    """HTTP 429: a limit of the key; `retry_after` says how long to wait."""

    known_status = 429
    retryable = True


class TooManyStreams(RateLimitError):
    """Too many event streams are open. Each key may hold only so many open event streams."""

    known_code = "too_many_streams"
    advice = "Close some, or poll the job instead."


class TooManyWaits(RateLimitError):
    """Too many requests are waiting for jobs. Each key may hold only so many waiting requests."""

    known_code = "too_many_waits"
    advice = "Wait for fewer jobs at once, or poll without `Prefer: wait`."


class TooManyAtOnce(RateLimitError):
    """Too many concurrent requests. Keys take turns, and too many of this key's requests are
    already in line."""

    known_code = "too_many_at_once"
    advice = "Send fewer of these at once."


class RequestRateExceeded(RateLimitError):
    """Too many requests per minute. The `RateLimit` header says how many are left."""

    known_code = "rate_limited"
    advice = "Slow down."
    see = "GET /v1/usage"


class TooManyJobs(RateLimitError):
    """The key has too many jobs. Each key may have only so many queued and running jobs."""

    known_code = "too_many_jobs"
    advice = "Wait until some end, or cancel some."
    see = "GET /v1/usage"


class QueuedCostExceeded(RateLimitError):
    """The key has too much queued work. Pixels × steps × images of the key's queued jobs are
    limited."""

    known_code = "queued_cost_exceeded"
    advice = "Wait until some have run, or cancel some."
    see = "GET /v1/usage"


class GpuSecondsExceeded(RateLimitError):
    """The key has too few GPU-seconds left today. Today's use, the estimate for unfinished jobs and
    this work would exceed the limit."""

    known_code = "gpu_seconds_exceeded"
    advice = "Wait until your jobs end, or until 00:00 UTC."
    see = "GET /v1/usage"


class UploadBytesExceeded(RateLimitError):
    """The key stores too many bytes of uploads. Stored initial images and batch files count towards
    the limit."""

    known_code = "upload_bytes_exceeded"
    advice = "Delete some."
    see = "GET /v1/usage"
    retryable = False


class InternalServerError(APIStatusError):
    """HTTP 5xx: the service failed."""

    known_status = 500


class InternalError(InternalServerError):
    """Something went wrong on our side. This is a bug in the server; its log has the details."""

    known_code = "internal_error"
    advice = "Report it with the `request_id`."


class GenerationFailed(InternalServerError):
    """The job failed. `detail` gives the job's ID and its error; there are no images."""

    known_code = "generation_failed"
    advice = "Look at the job; retry it if its error is temporary."


class ServiceUnavailableError(InternalServerError):
    """HTTP 503: a part that the service needs is down for now."""

    known_status = 503
    retryable = True


class DatabaseUnavailable(ServiceUnavailableError):
    """The database is not available. Nothing was accepted, and nothing was lost."""

    known_code = "database_unavailable"
    advice = "Try again after `Retry-After` seconds."


class StorageUnavailable(ServiceUnavailableError):
    """Object storage is not available. Images can be neither stored nor read until it is back."""

    known_code = "storage_unavailable"
    advice = "Try again after `Retry-After` seconds."


class DiskFull(ServiceUnavailableError):
    """The server's disk is full. Large bodies are spooled to disk; nothing was accepted."""

    known_code = "disk_full"
    advice = "Try again later; the operator must make room."


class EmbeddingUnavailable(ServiceUnavailableError):
    """Queries cannot be embedded right now. Search needs a CPU worker, which is starting or
    down."""

    known_code = "embedding_unavailable"
    advice = "Start one: `darkroom-server worker cpu`. Try again after `Retry-After` seconds."


class DecoderUnavailable(ServiceUnavailableError):
    """Images cannot be decoded right now. All image decoders are busy."""

    known_code = "decoder_unavailable"
    advice = "Try again after `Retry-After` seconds."


class FilterUnavailable(ServiceUnavailableError):
    """A filter did not respond. The operator's filters must check each prompt, and one failed or
    took too long."""

    known_code = "filter_unavailable"
    advice = "Try again after `Retry-After` seconds."


class Busy(ServiceUnavailableError):
    """Too many large bodies or images at once. The server reads only so many large bodies and
    images at once; nothing was queued."""

    known_code = "busy"
    advice = "Try again after `Retry-After` seconds."


class Overloaded(ServiceUnavailableError):
    """The server has more work than it accepts. Nothing was queued; `Retry-After` follows from
    current throughput."""

    known_code = "overloaded"
    advice = "Try again after `Retry-After` seconds."


class QuotaUnavailable(ServiceUnavailableError):
    """The key's request rate cannot be checked. Redis is down; until it is back, rate-limited keys
    can read but not queue work."""

    known_code = "quota_unavailable"
    advice = "Try again after `Retry-After` seconds."


class WorkersUnknown(ServiceUnavailableError):
    """The workers cannot be listed right now. Worker heartbeats are in Redis, which is down;
    running jobs continue."""

    known_code = "workers_unknown"
    advice = "Try again after `Retry-After` seconds."


class JobNotDone(ServiceUnavailableError):
    """The job takes longer than a request may wait. It continues; `detail` gives its ID. Only the
    OpenAI API returns this, with status 504."""

    known_code = "job_not_done"
    advice = "Poll the job."


class NotReady(ServiceUnavailableError):
    """The service is not ready. A service it depends on is down; `errors` names each."""

    known_code = "not_ready"
    advice = "Try again after `Retry-After` seconds."


JOB_ADVICE = {
    "invalid_input": "Change the request as the message says.",
    "model_unavailable": "Choose another model, or have the operator look at the worker's log.",
    "lora_unavailable": "Leave the LoRA out, or use the model that it was trained for.",
    "controlnet_unavailable": "Leave the ControlNet out, or use the model that it was trained for.",
    "out_of_memory": "Use a smaller size or fewer images.",
    "nan_output": "Change the steps, the guidance scale or the scheduler.",
    "device_lost": "Retry; if it persists, have the operator look at the worker's log.",
    "storage_unavailable": "Retry once object storage is back.",
    "signer_unavailable": "Retry; if it persists, have the operator look at the signer.",
    "signing_failed": "Have the operator look at the worker's log and certificate.",
    "worker_lost": "Retry; if it persists, have the operator look at the worker's log.",
    "filtered": "Change the prompt; the operator chooses the filters.",
    "refused_by_filter": "Change the prompt and submit it again; the operator chooses the filters.",
    "filter_unavailable": "Retry; if it persists, have the operator look at the worker's log.",
    "internal_error": "This is a bug: report it with the job's id.",
}
"""What to do about a failed job, by its `error.code`."""
