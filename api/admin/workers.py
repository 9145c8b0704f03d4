"""The rules of workers: list, drain, resume."""

import contextlib
from collections.abc import Sequence
from typing import Any
from urllib.parse import quote

from api.admin.schemas import (
    Drain,
    Size,
    Worker,
    WorkerLinks,
    WorkerMemory,
    WorkerModel,
    WorkerStatus,
)
from api.context import Resources
from api.core.errors import Problem
from api.core.principal import Principal
from api.core.publisher import RedisDown
from api.core.serialization import Page
from shared.admin import queries
from shared.admin.models import WorkerDrain
from shared.core.broker import DRAIN_CHANNEL
from shared.core.worker_registry import ModelStatus, WorkerHeartbeat

_UNAWARE = {WorkerStatus.READY, WorkerStatus.BUSY}
"""What a worker may still say of itself in the moment before it hears of its drain."""


async def list_workers(resources: Resources) -> Page[Worker]:
    """Every live worker, and those to be drained when they return.

    Raises:
        Problem: 503 while Redis or Postgres is unavailable.
    """
    alive = {heartbeat.name: (heartbeat, lag) for heartbeat, lag in await _read(resources)}
    async with resources.transaction() as session:
        drains = {d.worker: d for d in await session.scalars(queries.list_drains())}
    shown = [
        _serialize(resources, name, alive.get(name), drains.get(name))
        for name in sorted(alive.keys() | drains.keys())
    ]
    return Page.whole(shown)


async def get(resources: Resources, name: str) -> Worker:
    """One worker.

    Raises:
        Problem: 404 for a name that is neither alive nor draining.
    """
    alive = await _read(resources, name)
    async with resources.transaction() as session:
        drain = (await session.scalars(queries.list_drains([name]))).one_or_none()
    if not alive and drain is None:
        raise _unknown()
    return _serialize(resources, name, alive[0] if alive else None, drain)


async def drain(resources: Resources, principal: Principal, name: str) -> Worker:
    """Tell a worker to take no more work. A second time changes nothing.

    Raises:
        Problem: 404 for a name that is neither alive nor draining.
    """
    alive = await _read(resources, name)
    async with resources.transaction() as session:
        known = (await session.scalars(queries.list_drains([name]))).one_or_none()
        if not alive and known is None:
            raise _unknown()
        order = queries.order_drain(name, principal.key_id)
        ordered = known or (await session.scalars(order)).one()
    await _tell(resources, name)
    return _serialize(resources, name, alive[0] if alive else None, ordered)


async def resume(resources: Resources, name: str) -> Worker:
    """Let a worker take work again. A second time changes nothing.

    Raises:
        Problem: 404 for a name that is neither alive nor draining.
    """
    alive = await _read(resources, name)
    async with resources.transaction() as session:
        lifted = (await session.scalars(queries.lift_drain(name))).one_or_none()
    if not alive and lifted is None:
        raise _unknown()
    await _tell(resources, name)
    return _serialize(resources, name, alive[0] if alive else None, None)


async def _read(
    resources: Resources, name: str | None = None
) -> Sequence[tuple[WorkerHeartbeat, float]]:
    if name is not None and "\0" in name:  # Postgres cannot hold it: the name of none
        raise _unknown()
    try:
        return await resources.workers.read_now(name)
    except RedisDown:
        raise Problem("workers_unknown") from None


async def _tell(resources: Resources, name: str) -> None:
    """A notification; without it the worker asks the database at its next heartbeat."""
    with contextlib.suppress(RedisDown):
        await resources.circuit_breaker.call(resources.redis.publish, DRAIN_CHANNEL, name)


def _unknown() -> Problem:
    return Problem("not_found", "No live worker has this name.")


def _serialize(
    resources: Resources,
    name: str,
    alive: tuple[WorkerHeartbeat, float] | None,
    drain: WorkerDrain | None,
) -> Worker:
    here = f"{resources.settings.public_url}/v1/workers/{quote(name, safe='')}"
    about: dict[str, Any] = {
        "name": name,
        "drain": Drain.of(drain) if drain is not None else None,
        "links": WorkerLinks(self=here, drain=f"{here}/drain", resume=f"{here}/resume"),
    }
    if alive is None:
        return Worker(
            state=WorkerStatus.AWAY,
            kind=None,
            device=None,
            models=[],
            jobs=0,
            threads=None,
            memory=WorkerMemory(used=None, limit=None),
            dispatches=False,
            lag=None,
            version=None,
            started_at=None,
            **about,
        )
    heartbeat, lag = alive
    state = WorkerStatus(heartbeat.state)
    return Worker.of(
        heartbeat,
        state=WorkerStatus.DRAINING if drain is not None and state in _UNAWARE else state,
        models=[_serialize_model(model) for model in heartbeat.models],
        memory=WorkerMemory(used=heartbeat.memory_bytes, limit=heartbeat.memory_limit),
        lag=round(lag, 3),
        **about,
    )


def _serialize_model(model: ModelStatus) -> WorkerModel:
    sizes = [Size(width=width, height=height) for width, height in model.sizes]
    return WorkerModel.of(model, sizes=sizes)
