"""What clients get for models."""

from pydantic import Field

from api.wire import AnswerModel
from shared.fleet.announcement import ModelState, WorkerState


class ServingWorker(AnswerModel):
    """A live worker that serves the model."""

    name: str
    state: WorkerState
    model_state: ModelState = Field(description="`warm`: it makes pictures with it right away.")
    device: str | None
    rows: int | None = Field(description="Images in one GPU batch; part of what fixes the bytes.")
    content_hash: str | None = Field(description="SHA-256 over the checkpoint's files.")


class Model(AnswerModel):
    """A model with its defaults and limits. `workers` is null while Redis cannot say."""

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
    schedulers: list[str]
    served: bool | None
    workers: list[ServingWorker] | None
