"""Why a job can fail: one exception type per cause, each with a stable code.

The tree, drawn once::

    JobError
    ├── InvalidInput          invalid_input        never retried: the request cannot be carried out
    ├── ModelUnavailable      model_unavailable    the checkpoint cannot be loaded
    ├── OutOfMemory           out_of_memory        even one row did not fit on the device
    ├── NanOutput             nan_output           NaN or all-black output, in full precision too
    ├── TimedOut              timed_out            a tick or the whole job ran past its limit
    ├── DeviceLost            device_lost          the device's context is poisoned
    ├── StorageUnavailable    storage_unavailable  S3 refused or was out of reach for minutes
    ├── WorkerLost            worker_lost          the worker's lease ran out
    └── InternalError         internal_error       a bug; the log has the trace

The code is what clients see in ``error.code`` and what ``job_attempts.error_code`` records; it
never changes once released. `retryable` says whether another attempt can end differently.
"""

from typing import ClassVar


class JobError(Exception):
    """A job, or one attempt at it, failed for a cause that has a name."""

    code: ClassVar[str] = "internal_error"
    retryable: ClassVar[bool] = False

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.message = message


class InvalidInput(JobError):
    """The request cannot be carried out, now or later."""

    code = "invalid_input"


class ModelUnavailable(JobError):
    """The checkpoint is missing, damaged, refused, or not a text-to-image pipeline."""

    code = "model_unavailable"


class OutOfMemory(JobError):
    """The device ran out of memory even with a single row."""

    code = "out_of_memory"
    retryable = True


class NanOutput(JobError):
    """The pipeline gave NaN or an all-black picture, also after upcasting."""

    code = "nan_output"


class TimedOut(JobError):
    """The work did not end within its limit."""

    code = "timed_out"


class DeviceLost(JobError):
    """The device's context is unusable; only a new process can go on."""

    code = "device_lost"
    retryable = True


class StorageUnavailable(JobError):
    """Object storage could not be reached, for longer than uploads are retried."""

    code = "storage_unavailable"
    retryable = True


class WorkerLost(JobError):
    """The worker stopped renewing its lease: it was killed, cut off or frozen."""

    code = "worker_lost"
    retryable = True


class InternalError(JobError):
    """Something failed that has no name yet."""

    code = "internal_error"
    retryable = True


JOB_ERRORS: dict[str, type[JobError]] = {
    error.code: error
    for error in (
        InvalidInput,
        ModelUnavailable,
        OutOfMemory,
        NanOutput,
        TimedOut,
        DeviceLost,
        StorageUnavailable,
        WorkerLost,
        InternalError,
    )
}
"""Every code a job or an attempt can carry, and its exception."""
