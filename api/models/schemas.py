"""What clients get for models."""

from pydantic import Field

from api.wire import AnswerModel
from shared.fleet.announcement import ModelState, WorkerState


class ServingWorker(AnswerModel):
    """A live worker that serves the model."""

    name: str
    """Name of the worker."""
    state: WorkerState
    """What the worker is doing."""
    model_state: ModelState = Field(description="`warm`: it makes pictures with it right away.")
    device: str | None
    """Its device, such as `NVIDIA H100` or `cpu`. Null: not known yet."""
    rows: int | None = Field(description="Images in one GPU batch; part of what fixes the bytes.")
    content_hash: str | None = Field(description="SHA-256 over the checkpoint's files.")


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
    schedulers: list[str]
    """Schedulers that a job may name."""
    served: bool | None
    """Whether a live worker can run it. Null: Redis is away, so nobody can say."""
    workers: list[ServingWorker] | None
    """Live workers that serve it. Null: Redis is away, so nobody can say."""
