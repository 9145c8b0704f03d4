"""The service itself: models, health, problems; keys and their usage; workers and queues."""

from collections.abc import Mapping
from datetime import datetime

import msgspec

from darkroom.decoding import Document

__all__ = [
    "Allowance",
    "Drain",
    "Health",
    "Key",
    "Model",
    "NewKey",
    "ProblemType",
    "QueueDepth",
    "Quotas",
    "Readiness",
    "Root",
    "ServingWorker",
    "Usage",
    "Worker",
    "WorkerMemory",
    "WorkerModel",
    "WorkerSize",
]


class ServingWorker(Document, frozen=True, kw_only=True):
    """A live worker that has loaded the model."""

    name: str
    state: str
    device: str | None = None
    batch_size: int | None = None
    content_hash: str | None = None


class Model(Document, frozen=True, kw_only=True):
    """A model with its defaults and limits."""

    name: str
    default: bool
    default_width: int
    default_height: int
    max_width: int
    max_height: int
    default_steps: int
    max_steps: int
    default_guidance_scale: float
    default_scheduler: str
    schedulers: tuple[str, ...]
    family: str | None = None
    """Its architecture; None while no worker has loaded it."""
    size_multiple: int = 8
    """Width and height are multiples of it, in pixels."""
    controlnets: tuple[str, ...] = ()
    """Names for a job's `controls`; none while its family is not known."""
    served: bool | None = None
    """Whether a worker serves it now; None while that is unknown."""
    workers: tuple[ServingWorker, ...] | None = None


class LoraHolder(Document, frozen=True, kw_only=True):
    """A live worker that has a LoRA loaded with a model."""

    name: str
    model: str
    sha256: str


class UploadedLora(Document, frozen=True, kw_only=True):
    """A LoRA of your tenant's own."""

    name: str
    family: str
    trigger_words: tuple[str, ...] = ()
    bytes: int
    sha256: str
    created_at: datetime


class Lora(Document, frozen=True, kw_only=True):
    """A LoRA that jobs may name."""

    name: str
    family: str
    """Architecture of the models that it was trained for."""
    trigger_words: tuple[str, ...] = ()
    """What to write in a prompt for it; nothing is inserted."""
    models: tuple[str, ...] = ()
    """Models that may take it, as far as their families are known."""
    workers: tuple[LoraHolder, ...] | None = None
    """Who has it loaded; None while that is unknown."""
    uploaded: UploadedLora | None = None
    """Facts about your tenant's upload; None for one of the catalogue."""


class Health(Document, frozen=True, kw_only=True):
    """The process is up."""

    status: str
    version: str


class Readiness(Document, frozen=True, kw_only=True):
    """Every part is up."""

    status: str
    database: str
    redis: str
    storage: str


class Root(Document, frozen=True, kw_only=True):
    """The name, the version and the main links of the service."""

    name: str
    version: str
    links: Mapping[str, str] = msgspec.field(default_factory=dict)


class ProblemType(Document, frozen=True, kw_only=True):
    """One entry of the error catalogue."""

    code: str
    status: int
    title: str
    doc: str
    """What happened and what to do about it."""
    retryable: bool | None = None
    """Whether the same request can succeed later, unchanged. None: not reported."""


class Quotas(Document, frozen=True, kw_only=True):
    """Limits of a key; None means no limit."""

    requests_per_minute: int | None = None
    queued_cost: int | None = None
    concurrent_jobs: int | None = None
    gpu_seconds_per_day: float | None = None
    upload_bytes: int | None = None
    max_pixels: int | None = None
    models: tuple[str, ...] | None = None


class Key(Document, frozen=True, kw_only=True):
    """An API key without its secret."""

    id: str
    name: str
    tenant: str
    scopes: tuple[str, ...]
    quotas: Quotas | None = None
    created_at: datetime
    last_used_at: datetime | None = None
    expires_at: datetime | None = None
    revoked_at: datetime | None = None


class NewKey(Key, frozen=True, kw_only=True):
    """A new key; `key` is shown only once."""

    hidden = ("key",)

    key: str


class Allowance(Document, frozen=True, kw_only=True):
    """One limit of the key. `limit` and `left` are None where there is none."""

    limit: float | None = None
    used: float | None = None
    reserved: float | None = None
    """Estimated use of unfinished jobs."""
    left: float | None = None
    resets_at: datetime | None = None


class Usage(Document, frozen=True, kw_only=True):
    """The key's usage and limits."""

    key_id: str
    requests_per_minute: Allowance
    queued_cost: Allowance
    concurrent_jobs: Allowance
    gpu_seconds_per_day: Allowance
    upload_bytes: Allowance = Allowance()
    max_pixels: int | None = None
    models: tuple[str, ...] | None = None


class WorkerSize(Document, frozen=True, kw_only=True):
    """A size of images, in pixels."""

    width: int
    height: int


class WorkerModel(Document, frozen=True, kw_only=True):
    """A model that the worker may serve."""

    name: str
    state: str
    """`warm`, `warming`, `retiring`, `cold` or `broken`."""
    batch_size: int | None = None
    """Images in one GPU batch; None: never loaded here."""
    sizes: tuple[WorkerSize, ...] = ()
    """The sizes it is warmed up for."""
    content_hash: str | None = None
    memory_bytes: int | None = None


class WorkerMemory(Document, frozen=True, kw_only=True):
    """The memory of all loaded models, in bytes; None where it is unknown or unlimited."""

    used: int | None = None
    limit: int | None = None


class Drain(Document, frozen=True, kw_only=True):
    """A request to take no more work."""

    requested_at: datetime
    requested_by: str | None = None
    drained_at: datetime | None = None
    """When it became idle and could be stopped. None: not yet."""


class Worker(Document, frozen=True, kw_only=True):
    """A worker, by its last heartbeat."""

    name: str
    """Stable across restarts; also in the attempts of jobs."""
    kind: str | None = None
    """`gpu` makes images, on whatever device; `cpu` does everything else. None: away."""
    state: str
    """`starting`, `warming`, `ready`, `busy`, `draining`, `faulty`, or `away`."""
    device: str | None = None
    models: tuple[WorkerModel, ...] = ()
    jobs: int = 0
    threads: int | None = None
    memory: WorkerMemory = WorkerMemory()
    dispatches: bool = False
    """Whether it is the leader that runs the dispatcher."""
    lag: float | None = None
    """Seconds since its last heartbeat."""
    version: str | None = None
    started_at: datetime | None = None
    drain: Drain | None = None


class QueueDepth(Document, frozen=True, kw_only=True):
    """One model's jobs of one queue class, of all tenants."""

    model: str
    queue_class: str
    """`interactive`, or `bulk` for batches; workers take interactive jobs first."""
    queued: int
    """Jobs that are waiting and may run."""
    running: int
    """Jobs that workers are running."""
    oldest_age_seconds: float | None = None
    """Age of the oldest queued job; None: none is waiting."""
