"""Why a job can fail: one exception type per cause, each with a stable code.

The code is what clients see in ``error.code`` and what ``job_attempts.error_code`` records; it
never changes once released.
"""

from typing import ClassVar


class JobError(Exception):
    """A job, or one attempt at it, failed for a cause that has a name."""

    code: ClassVar[str] = "internal_error"
    retryable: ClassVar[bool] = False
    """Whether another attempt can end differently."""
    advice: ClassVar[str] = ""
    """What the caller can do about it; the client and docs/errors.md show it."""

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.message = message


class InvalidInput(JobError):
    """The request cannot be carried out, now or later."""

    code = "invalid_input"
    advice = "Change the request as the message says."


class ModelUnavailable(JobError):
    """The checkpoint is missing, damaged, refused, or not a text-to-image pipeline."""

    code = "model_unavailable"
    advice = "Choose another model, or have the operator look at the worker's log."


class LoraUnavailable(JobError):
    """The file of a LoRA is missing, damaged, or made for another model."""

    code = "lora_unavailable"
    advice = "Leave the LoRA out, or use the model that it was trained for."


class ControlNetUnavailable(JobError):
    """The files of a ControlNet are missing, damaged, or made for another model."""

    code = "controlnet_unavailable"
    advice = "Leave the ControlNet out, or use the model that it was trained for."


class OutOfMemory(JobError):
    """The device ran out of memory even with a single row."""

    code = "out_of_memory"
    advice = "Use a smaller size or fewer images."
    retryable = True


class NanOutput(JobError):
    """The pipeline gave NaN or an all-black image, also after upcasting."""

    code = "nan_output"
    advice = "Change the steps, the guidance scale or the scheduler."


class DeviceLost(JobError):
    """The device's context is unusable; only a new process can continue."""

    code = "device_lost"
    advice = "Retry; if it persists, have the operator look at the worker's log."
    retryable = True


class StorageUnavailable(JobError):
    """Object storage refused, or could not be reached; a worker has tried for minutes by then."""

    code = "storage_unavailable"
    advice = "Retry once object storage is back."
    retryable = True


class SignerUnavailable(JobError):
    """The image could not be signed; a worker has tried for minutes by then."""

    code = "signer_unavailable"
    advice = "Retry; if it persists, have the operator look at the signer."
    retryable = True


class SigningFailed(JobError):
    """The worker cannot sign: its certificate has expired, or C2PA refuses the image."""

    code = "signing_failed"
    advice = "Have the operator look at the worker's log and certificate."


class WorkerLost(JobError):
    """The worker stopped renewing its lease: it was killed, cut off or frozen."""

    code = "worker_lost"
    advice = "Retry; if it persists, have the operator look at the worker's log."
    retryable = True


class Filtered(JobError):
    """The operator's filters have refused every image of the job."""

    code = "filtered"
    advice = "Change the prompt; the operator chooses the filters."


class RefusedByFilter(JobError):
    """One of the operator's filters has refused the prompt of a line."""

    code = "refused_by_filter"
    advice = "Change the prompt and submit it again; the operator chooses the filters."


class FilterUnavailable(JobError):
    """A filter failed or hung, and the operator lets nothing leave unseen."""

    code = "filter_unavailable"
    advice = "Retry; if it persists, have the operator look at the worker's log."
    retryable = True


class InternalError(JobError):
    """Something failed that has no name yet."""

    code = "internal_error"
    advice = "This is a bug: report it with the job's id."
    retryable = True


JOB_ERRORS: dict[str, type[JobError]] = {error.code: error for error in JobError.__subclasses__()}
"""Every code a job or an attempt can carry, and its exception."""
