"""What operators get for workers."""

from enum import StrEnum

from pydantic import Field

from api.wire import AnswerModel, UtcTime
from shared.fleet.announcement import ModelState, WorkerKind


class WorkerStanding(StrEnum):
    """A worker's state: its own, or `away`."""

    STARTING = "starting"
    WARMING = "warming"
    READY = "ready"
    BUSY = "busy"
    DRAINING = "draining"
    FAULTY = "faulty"
    AWAY = "away"
    """Not alive, but told to rest: should it come back, it takes no work."""


class Size(AnswerModel):
    """A size of pictures, in pixels."""

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
    rows: int | None = Field(description="Images in one GPU batch. Null: never loaded here.")
    sizes: list[Size] = Field(description="What it is warmed for; other sizes work, too.")
    content_hash: str | None = Field(description="SHA-256 over the checkpoint's files.")
    memory_bytes: int | None = Field(description="What its weights take. Null: never loaded here.")


class WorkerMemory(AnswerModel):
    """The memory of all models that are loaded, in bytes."""

    used: int | None
    """What the loaded models take. Null: not known."""
    limit: int | None = Field(description="Null: no limit, every model stays loaded.")


class Drain(AnswerModel):
    """The order to take no more work."""

    requested_at: UtcTime
    """When it was ordered."""
    requested_by: str | None = Field(description="Id of the API key.")
    drained_at: UtcTime | None = Field(
        description="When nothing was left in its hands: now it can be stopped. Null: not yet."
    )


class WorkerLinks(AnswerModel):
    """Where to go on from a worker."""

    self: str
    """This worker."""
    drain: str
    """POST here to have it take no more work."""
    resume: str
    """POST here to have it take work again."""


class Worker(AnswerModel):
    """A worker as it last announced itself."""

    name: str = Field(description="Stable over restarts; also in the attempts of jobs.")
    kind: WorkerKind | None = Field(
        description="`gpu` makes pictures, on whatever device; `cpu` does everything else. "
        "Null: away."
    )
    state: WorkerStanding = Field(
        description="`away`: not alive, but told to rest when it comes back."
    )
    device: str | None
    """Such as `NVIDIA H100` or `cpu`. Null: not known."""
    models: list[WorkerModel]
    """The models that it may serve. Empty for a `cpu` worker."""
    jobs: int = Field(description="Jobs (of a `cpu` worker: tasks) in its hands.")
    threads: int | None = Field(description="How many it can have in hand at once.")
    memory: WorkerMemory
    """Device memory that its models take, in bytes."""
    dispatches: bool = Field(description="Whether it is the one that leads the dispatcher.")
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
