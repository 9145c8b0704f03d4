"""What clients send and get for keys, usage, models, queues and workers."""

from enum import StrEnum
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, AwareDatetime, Field

from api.core.bodies import RequestModel
from api.core.errors import RuleBroken
from api.core.serialization import AnswerModel, UtcTime
from api.jobs.schemas import UploadedLora
from shared.core.quotas import Quotas
from shared.core.worker_registry import ModelState, WorkerKind, WorkerState

ScopeName = Literal[
    "jobs",
    "images",
    "search",
    "batches",
    "webhooks",
    "loras",
    "admin",
    "jobs:read",
    "images:read",
    "search:read",
    "batches:read",
    "webhooks:read",
    "loras:read",
    "admin:read",
    "operator",
]


def _plain(text: str) -> str:
    if not text.isprintable() or not text.strip():
        raise RuleBroken("not_printable", "It needs visible characters and no control characters.")
    return text


Name = Annotated[str, Field(min_length=1, max_length=128), AfterValidator(_plain)]


class KeyRequest(RequestModel):
    """A key to be made."""

    name: Name = Field(description="Purpose; shown in lists.")
    tenant: Name | None = Field(
        default=None,
        description="Another tenant than your own, made on first use; needs the scope operator.",
    )
    scopes: Annotated[list[ScopeName], Field(min_length=1, max_length=16)] = Field(
        description="`jobs` reads and writes, `jobs:read` reads; `admin` is all of a tenant's."
    )
    # Lax: JSON has no times, and strict mode would refuse their text.
    expires_at: Annotated[AwareDatetime, Field(strict=False)] | None = Field(
        default=None,
        description="RFC 3339 with an offset, not after the end of the key that you send. Null: "
        "it ends with that key, or never.",
    )
    quotas: Quotas | None = Field(default=None, description="Null: no limits.")


class Key(AnswerModel):
    """An API key without its secret."""

    id: str = Field(description="The public part of the key.")
    name: str
    """Purpose, as its maker put it."""
    tenant: str
    """Name of the tenant that it acts for."""
    scopes: list[str]
    """What it may do, such as `jobs` or `images:read`."""
    quotas: Quotas | None
    """Its limits. Null: none."""
    created_at: UtcTime
    """When it was made."""
    last_used_at: UtcTime | None = Field(description="To the minute.")
    expires_at: UtcTime | None
    """From then on it is refused. Null: it does not expire."""
    revoked_at: UtcTime | None
    """When it was revoked. Null: it was not."""


class NewKey(Key):
    """A key just made."""

    key: str = Field(description="Shown once; only its hash is kept.")


KEY_EXAMPLES: dict[str, Any] = {
    "for another team": {"name": "their backend", "tenant": "team-b", "scopes": ["jobs", "images"]},
    "with quotas": {
        "name": "demo page",
        "scopes": ["jobs", "images:read"],
        "expires_at": "2099-01-01T00:00:00Z",
        "quotas": {"requests_per_minute": 120, "concurrent_jobs": 4, "gpu_seconds_per_day": 600.0},
    },
}


class Allowance(AnswerModel):
    """One limit of the key. `limit` and `left` are null where there is none."""

    limit: float | None
    """The most that is allowed, in the unit of this quota. Null: no limit."""
    used: float | None = Field(description="Null when it is not known just now.")
    reserved: float | None
    """Estimated use of unfinished jobs. Null where nothing is held back."""
    left: float | None
    """`limit` minus `used` and `reserved`, never below 0. Null without a limit."""
    resets_at: UtcTime | None = Field(description="Null where it is freed as jobs end.")


class Usage(AnswerModel):
    """The key's limits and usage."""

    key_id: str
    """The public part of the key that asked."""
    requests_per_minute: Allowance
    """Requests of any kind within a sliding minute."""
    queued_cost: Allowance
    """Width × height × steps × images of the key's queued jobs."""
    concurrent_jobs: Allowance
    """The key's jobs that are queued or running."""
    gpu_seconds_per_day: Allowance
    """Device time of the attempts that ended since 00:00 UTC, in seconds."""
    upload_bytes: Allowance
    """Bytes of the initial images and batch files that are kept for the key."""
    max_pixels: int | None = Field(description="Width × height of the largest image.")
    models: list[str] | None = Field(description="Null: every model.")


class ServingWorker(AnswerModel):
    """A live worker that serves the model."""

    name: str
    """Name of the worker."""
    state: WorkerState
    """What the worker is doing."""
    model_state: ModelState = Field(description="`warm`: it makes images with it right away.")
    device: str | None
    """Its device, such as `NVIDIA H100` or `cpu`. Null: not known yet."""
    batch_size: int | None = Field(
        description="Images in one GPU batch; part of what fixes the bytes."
    )
    content_hash: str | None = Field(description="SHA-256 over the checkpoint's files.")


class LoraHolder(AnswerModel):
    """A live worker that has a LoRA loaded with a model."""

    name: str
    """Name of the worker."""
    model: str
    """Name of the model."""
    sha256: str
    """SHA-256 of the file."""


class Model(AnswerModel):
    """A model with its defaults and limits. `workers` is null while Redis cannot say."""

    name: str
    """Pass it as `model` of a job."""
    default: bool
    """Whether jobs that name no model use this one."""
    default_width: int
    """Width of images in pixels, unless the job says otherwise."""
    default_height: int
    """Height of images in pixels, unless the job says otherwise."""
    max_width: int
    """The largest width, in pixels."""
    max_height: int
    """The largest height, in pixels."""
    default_steps: int
    """Denoising steps, unless the job says otherwise."""
    max_steps: int
    """The most denoising steps that a job may ask for."""
    default_guidance_scale: float
    """Classifier-free guidance scale, unless the job says otherwise."""
    default_scheduler: str
    """Scheduler, unless the job says otherwise."""
    family: str | None
    """Architecture, from its checkpoint or from workers. Null: no worker has loaded it yet."""
    size_multiple: int
    """Width and height are multiples of it, in pixels."""
    schedulers: list[str]
    """Schedulers that a job may name; all there are while the family is not known."""
    controlnets: list[str]
    """Names for a job's `controls`; none while the family is not known."""
    served: bool | None
    """Whether a live worker can run it. Null: Redis is unavailable, so nobody can say."""
    workers: list[ServingWorker] | None
    """Live workers that serve it. Null: Redis is unavailable, so nobody can say."""


class Lora(AnswerModel):
    """A LoRA that jobs may name. `workers` is null while Redis cannot say."""

    name: str
    """Pass it as `name` in a job's `loras`."""
    family: str
    """Architecture of the models that it was trained for."""
    trigger_words: list[str]
    """What to write in a prompt for it; nothing is inserted."""
    models: list[str]
    """Models that may take it, as far as their families are known."""
    workers: list[LoraHolder] | None
    """Live workers that have it loaded. Others load it when a job needs it."""
    uploaded: UploadedLora | None
    """Facts about your tenant's upload. Null: it is the catalogue's."""


class QueueDepth(AnswerModel):
    """One model's jobs of one queue class, of all tenants."""

    model: str
    """Name of the model."""
    queue_class: str = Field(description="`interactive`, or `bulk`: of batches, taken second.")
    queued: int = Field(
        description="Jobs that wait and may run: not those of paused batches or before their next "
        "attempt."
    )
    running: int = Field(description="Jobs that workers run.")
    oldest_age_seconds: float | None = Field(
        description="Age of the oldest queued job, since its submission or its last failure. "
        "Null: none waits."
    )


class WorkerStatus(StrEnum):
    """A worker's state: its own, or `away`."""

    STARTING = "starting"
    WARMING = "warming"
    READY = "ready"
    BUSY = "busy"
    DRAINING = "draining"
    FAULTY = "faulty"
    AWAY = "away"
    """Not alive, but drained: if it returns, it takes no work."""


class Size(AnswerModel):
    """A size of images, in pixels."""

    width: int
    """In pixels."""
    height: int
    """In pixels."""


class WorkerModel(AnswerModel):
    """A model that the worker may serve."""

    name: str
    """Name of the model."""
    state: ModelState
    """`warm`: it makes images right away. `cold`: it is loaded when its jobs wait."""
    batch_size: int | None = Field(description="Images in one GPU batch. Null: never loaded here.")
    sizes: list[Size] = Field(description="Sizes that it is warmed up for; others work, too.")
    content_hash: str | None = Field(description="SHA-256 over the checkpoint's files.")
    memory_bytes: int | None = Field(description="Size of its weights. Null: never loaded here.")


class WorkerMemory(AnswerModel):
    """The memory of all models that are loaded, in bytes."""

    used: int | None
    """Memory of the loaded models. Null: not known."""
    limit: int | None = Field(description="Null: no limit, every model stays loaded.")


class Drain(AnswerModel):
    """The order to take no more work."""

    requested_at: UtcTime
    """When it was ordered."""
    requested_by: str | None = Field(description="Id of the API key.")
    drained_at: UtcTime | None = Field(
        description="When its last job ended and it could be stopped. Null: not yet."
    )


class WorkerLinks(AnswerModel):
    """Links from a worker."""

    self: str
    """This worker."""
    drain: str
    """POST here to have it take no more work."""
    resume: str
    """POST here to have it take work again."""


class Worker(AnswerModel):
    """A worker, by its last heartbeat."""

    name: str = Field(description="Stable over restarts; also in the attempts of jobs.")
    kind: WorkerKind | None = Field(
        description="`gpu` makes images, on whatever device; `cpu` does everything else. "
        "Null: away."
    )
    state: WorkerStatus = Field(description="`away`: not alive, but draining when it returns.")
    device: str | None
    """Such as `NVIDIA H100` or `cpu`. Null: not known."""
    models: list[WorkerModel]
    """The models that it may serve. Empty for a `cpu` worker."""
    jobs: int = Field(description="Jobs (of a `cpu` worker: tasks) in flight.")
    threads: int | None = Field(description="How many can be in flight at once.")
    memory: WorkerMemory
    """Device memory that its models take, in bytes."""
    dispatches: bool = Field(description="Whether this worker is the dispatcher leader.")
    lag: float | None = Field(
        description="Seconds since its last heartbeat, by Redis's clock. Null: away."
    )
    version: str | None
    """Version of its software. Null: away."""
    started_at: UtcTime | None
    """When the process started. Null: away."""
    drain: Drain | None
    """Set while it is to take no more work. Null: it may."""
    links: WorkerLinks
    """URLs of related resources. They need the API key."""
