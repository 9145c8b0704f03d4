"""The workers that are alive: what each reports of itself, kept in Redis."""

import time
from collections.abc import Iterable
from datetime import datetime
from enum import StrEnum
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, ValidationError
from redis import Redis
from redis.client import Pipeline

from shared.core import broker
from shared.core.broker import unreadable

WorkerKind = Literal["gpu", "cpu"]
"""``gpu`` runs generation jobs, on whatever device; ``cpu`` does everything else."""


class WorkerState(StrEnum):
    """What a worker is doing, as clients and operators see it."""

    STARTING = "starting"
    WARMING = "warming"
    """It loads its first models and makes an image with each."""
    READY = "ready"
    BUSY = "busy"
    """Ready, with jobs in flight."""
    DRAINING = "draining"
    """It takes nothing more, because an operator said so or because it is about to end."""
    FAULTY = "faulty"
    """Its device is lost, or it takes none of the work that waits; the process ends in seconds."""


class ModelState(StrEnum):
    """How near a worker is to making an image with a model."""

    WARM = "warm"
    """Loaded, and an image was made with it; its jobs are taken."""
    WARMING = "warming"
    """Being loaded."""
    RETIRING = "retiring"
    """Its last jobs here are being finished; then it makes room for another."""
    COLD = "cold"
    """Declared and not loaded; it is loaded when jobs for it wait and nobody else has it warm."""
    BROKEN = "broken"
    """It could not be loaded; tried again after a minute, later after up to an hour."""


class ModelStatus(BaseModel):
    """A model that a worker may serve."""

    model_config = ConfigDict(frozen=True, allow_inf_nan=False)

    name: str
    state: ModelState = ModelState.WARM
    content_hash: str | None = None
    family: str | None = None
    """See `worker.engine.interface.ModelFacts`; None while it has never been loaded."""
    batch_size: int | None = None
    """The fixed batch shape; None while it has never been loaded."""
    sizes: tuple[tuple[int, int], ...] = ()
    """(width, height) in pixels, as warmed."""
    memory_bytes: int | None = None
    """Size of its weights; None while it has never been loaded."""
    loras: dict[str, str] = {}
    """Name -> SHA-256 of the file, of the LoRAs that are loaded with it."""


class WorkerHeartbeat(BaseModel):
    """A live worker."""

    model_config = ConfigDict(frozen=True, allow_inf_nan=False)

    name: str
    kind: WorkerKind = "gpu"
    state: WorkerState
    device: str | None = None
    models: tuple[ModelStatus, ...] = ()
    jobs: int = 0
    """Jobs (of a CPU worker: tasks) in flight."""
    threads: int | None = None
    """How many it can have in flight at once."""
    memory_bytes: int | None = None
    """What all of its models take together."""
    memory_limit: int | None = None
    """What they may take; None: no limit."""
    dispatches: bool = False
    """Whether it leads the dispatcher."""
    version: str | None = None
    started_at: datetime
    ttl_seconds: float = 0.0
    """The heartbeat's time to live."""

    @property
    def takes_work(self) -> bool:
        """Whether a job that is queued now may be taken by it."""
        return self.state in (WorkerState.READY, WorkerState.BUSY)

    def serves(self, model: str) -> bool:
        """Whether it is there to stay and has the model, warm or to be loaded when needed."""
        if self.state in (WorkerState.DRAINING, WorkerState.FAULTY):
            return False
        return any(m.name == model and m.state is not ModelState.BROKEN for m in self.models)

    def warm(self, model: str) -> ModelStatus | None:
        """The model, if it is warm here and the worker takes work."""
        if not self.takes_work:
            return None
        return next(
            (m for m in self.models if m.name == model and m.state is ModelState.WARM), None
        )


def parse(texts: Iterable[bytes | str | None]) -> list[WorkerHeartbeat]:
    """The heartbeats that are live and readable."""
    heartbeats = []
    for text in texts:
        if text is not None:
            try:
                heartbeats.append(WorkerHeartbeat.model_validate_json(text))
            except ValidationError as error:
                # From a version with other fields, or nonsense.
                unreadable("heartbeat", error)
    return heartbeats


# The index is a sorted set (scored by the time of the last heartbeat) that is read in one go;
# looking for the keys by pattern would walk through every key that Redis has.

_PURGE_AFTER_SECONDS = 3600
"""A name that was not heard of for this long leaves the index. Generous: clocks differ."""


def store_heartbeat(pipeline: Pipeline, heartbeat: WorkerHeartbeat) -> None:
    """Queue the heartbeat on a pipeline; the caller executes it."""
    now = time.time()
    key = broker.worker_key(heartbeat.name)
    pipeline.set(key, heartbeat.model_dump_json(), px=int(heartbeat.ttl_seconds * 1000))
    pipeline.zadd(broker.WORKERS, {heartbeat.name: now})
    pipeline.zremrangebyscore(broker.WORKERS, "-inf", now - _PURGE_AFTER_SECONDS)


def remove_worker(pipeline: Pipeline, name: str) -> None:
    """Queue a worker's removal."""
    pipeline.delete(broker.worker_key(name))
    pipeline.zrem(broker.WORKERS, name)


def list_workers(client: Redis) -> list[WorkerHeartbeat]:
    """The live workers; blocks.

    Raises:
        redis.RedisError: Redis cannot be reached.
    """
    names: Any = client.zrange(broker.WORKERS, 0, -1)
    keys = [
        broker.worker_key(name.decode(errors="replace") if isinstance(name, bytes) else name)
        for name in names
    ]
    return parse(client.mget(keys)) if keys else []
