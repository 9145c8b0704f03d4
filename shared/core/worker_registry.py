"""The workers that are alive: what each reports of itself, kept in Redis."""

import time
from collections.abc import Iterable
from datetime import datetime
from enum import StrEnum
from typing import Any, Literal, Protocol

from pydantic import BaseModel, ConfigDict, ValidationError

from shared.core import broker
from shared.core.broker import unreadable

WorkerKind = Literal["gpu", "cpu"]
"""``gpu`` runs generation jobs, on whatever device; ``cpu`` does everything else."""


class WorkerState(StrEnum):
    """What a worker is doing, as clients and operators see it."""

    STARTING = "starting"
    WARMING = "warming"
    """It loads its first models and makes a picture with each."""
    READY = "ready"
    BUSY = "busy"
    """Ready, with jobs in hand."""
    DRAINING = "draining"
    """It takes nothing more, because an operator said so or because it is about to end."""
    FAULTY = "faulty"
    """Its device is lost, or it takes none of the work that waits; the process ends in seconds."""


class ModelState(StrEnum):
    """How near a worker is to making a picture with a model."""

    WARM = "warm"
    """Loaded, and a picture was made with it; its jobs are taken."""
    WARMING = "warming"
    """Being loaded."""
    RETIRING = "retiring"
    """Its last jobs here are being finished; then it makes room for another."""
    COLD = "cold"
    """Declared and not loaded; it is loaded when jobs for it wait and nobody else has it warm."""
    BROKEN = "broken"
    """It could not be loaded; not tried again before the worker is restarted."""


class AnnouncedModel(BaseModel):
    """A model that a worker may serve."""

    model_config = ConfigDict(frozen=True, allow_inf_nan=False)

    name: str
    state: ModelState = ModelState.WARM
    content_hash: str | None = None
    family: str | None = None
    """See `worker.engine.interface.ModelFacts`; None while it has never been loaded."""
    rows: int | None = None
    """The fixed batch shape; None while it has never been loaded."""
    sizes: tuple[tuple[int, int], ...] = ()
    """(width, height) in pixels, as warmed."""
    memory_bytes: int | None = None
    """What its weights take; None while it has never been loaded."""


class WorkerAnnouncement(BaseModel):
    """A live worker."""

    model_config = ConfigDict(frozen=True, allow_inf_nan=False)

    name: str
    kind: WorkerKind = "gpu"
    state: WorkerState
    device: str | None = None
    models: tuple[AnnouncedModel, ...] = ()
    jobs: int = 0
    """Jobs (of a CPU worker: tasks) in hand."""
    threads: int | None = None
    """How many it can have in hand at once."""
    memory_bytes: int | None = None
    """What all of its models take together."""
    memory_limit: int | None = None
    """What they may take; None: no limit."""
    dispatches: bool = False
    """Whether it leads the dispatcher."""
    version: str | None = None
    started_at: datetime
    ttl_seconds: float = 0.0
    """For how long the announcement stands, from the moment it was made."""

    @property
    def takes_work(self) -> bool:
        """Whether a job that is queued now may be taken by it."""
        return self.state in (WorkerState.READY, WorkerState.BUSY)

    def serves(self, model: str) -> bool:
        """Whether it is there to stay and has the model, warm or to be loaded when needed."""
        if self.state in (WorkerState.DRAINING, WorkerState.FAULTY):
            return False
        return any(m.name == model and m.state is not ModelState.BROKEN for m in self.models)

    def warm(self, model: str) -> AnnouncedModel | None:
        """The model, if it is warm here and the worker takes work."""
        if not self.takes_work:
            return None
        return next(
            (m for m in self.models if m.name == model and m.state is ModelState.WARM), None
        )


def parse(texts: Iterable[bytes | str | None]) -> list[WorkerAnnouncement]:
    """Those announcements that stand and can be read."""
    found = []
    for text in texts:
        if text is None:
            continue
        try:
            found.append(WorkerAnnouncement.model_validate_json(text))
        except ValidationError as error:
            # Of a version that has another idea of an announcement, or nonsense.
            unreadable("announcement", error)
    return found


# The index is a sorted set (scored by the time of the last announcement) that is read in one go;
# looking for the keys by pattern would walk through every key that Redis has.

_FORGET_SECONDS = 3600
"""A name that was not heard of for so long leaves the index. Generous: clocks differ."""


class _Pipeline(Protocol):
    def set(self, name: str, value: str, *, px: int) -> Any: ...
    def zadd(self, name: str, mapping: dict[str, float]) -> Any: ...
    def zremrangebyscore(self, name: str, min: Any, max: Any) -> Any: ...  # noqa: A002 - redis-py's
    def delete(self, name: str) -> Any: ...
    def zrem(self, name: str, value: str) -> Any: ...


class _Redis(Protocol):
    def zrange(self, name: str, start: int, end: int) -> Any: ...
    def mget(self, keys: list[str]) -> Any: ...


def announce(pipeline: _Pipeline, said: WorkerAnnouncement) -> None:
    """Queue the announcement on a pipeline; the caller executes it."""
    now = time.time()
    key = broker.worker_key(said.name)
    pipeline.set(key, said.model_dump_json(), px=int(said.ttl_seconds * 1000))
    pipeline.zadd(broker.WORKERS, {said.name: now})
    pipeline.zremrangebyscore(broker.WORKERS, "-inf", now - _FORGET_SECONDS)


def withdraw(pipeline: _Pipeline, name: str) -> None:
    """Queue the end of a worker's announcement."""
    pipeline.delete(broker.worker_key(name))
    pipeline.zrem(broker.WORKERS, name)


def read(client: _Redis) -> list[WorkerAnnouncement]:
    """The live workers, for who may block: workers themselves.

    Raises:
        redis.RedisError: Redis cannot be reached.
    """
    found = [_text(name) for name in client.zrange(broker.WORKERS, 0, -1)]
    return parse(client.mget([broker.worker_key(name) for name in found])) if found else []


def _text(name: bytes | str) -> str:
    return name.decode(errors="replace") if isinstance(name, bytes) else name
