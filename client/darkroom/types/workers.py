"""Workers, as operators see them."""

from dataclasses import dataclass
from datetime import datetime

from darkroom.decoding import Document


@dataclass(frozen=True, kw_only=True)
class WorkerSize(Document):
    """A size of pictures, in pixels."""

    width: int
    height: int


@dataclass(frozen=True, kw_only=True)
class WorkerModel(Document):
    """A model that the worker may serve."""

    name: str
    state: str
    """`warm`, `warming`, `retiring`, `cold` or `broken`."""
    rows: int | None = None
    """Images in one GPU batch; None: never loaded here."""
    sizes: tuple[WorkerSize, ...] = ()
    """What it is warmed for."""
    content_hash: str | None = None
    memory_bytes: int | None = None


@dataclass(frozen=True, kw_only=True)
class WorkerMemory(Document):
    """The memory of all models that are loaded, in bytes; None where it is not known or limited."""

    used: int | None = None
    limit: int | None = None


@dataclass(frozen=True, kw_only=True)
class Drain(Document):
    """The order to take no more work."""

    requested_at: datetime
    requested_by: str | None = None
    drained_at: datetime | None = None
    """When nothing was left in its hands: now it can be stopped. None: not yet."""


@dataclass(frozen=True, kw_only=True)
class Worker(Document):
    """A worker as it last announced itself."""

    name: str
    """Stable over restarts; also in the attempts of jobs."""
    kind: str | None = None
    """`gpu` makes pictures, on whatever device; `cpu` does everything else. None: away."""
    state: str
    """`starting`, `warming`, `ready`, `busy`, `draining`, `faulty`, or `away`."""
    device: str | None = None
    models: tuple[WorkerModel, ...] = ()
    jobs: int = 0
    threads: int | None = None
    memory: WorkerMemory = WorkerMemory()
    dispatches: bool = False
    """Whether it is the one that leads the dispatcher."""
    lag: float | None = None
    """Seconds since its last heartbeat."""
    version: str | None = None
    started_at: datetime | None = None
    drain: Drain | None = None
