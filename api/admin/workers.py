"""The rules of workers: look at them, tell one to rest, let it go on."""

import contextlib
from collections.abc import Sequence
from urllib.parse import quote

from api.admin.schemas import (
    Drain,
    Size,
    Worker,
    WorkerLinks,
    WorkerMemory,
    WorkerModel,
    WorkerStanding,
)
from api.context import Resources
from api.core.errors import Problem
from api.core.principal import Principal
from api.core.publisher import RedisDown
from api.core.serialization import Page
from shared.admin import queries
from shared.admin.models import WorkerDrain
from shared.core.broker import DRAIN_CHANNEL
from shared.core.worker_registry import AnnouncedModel, WorkerAnnouncement

_RESTING = {WorkerStanding.READY, WorkerStanding.BUSY}
"""What a worker may still say of itself in the moment before it hears of its drain."""


async def list_workers(resources: Resources) -> Page[Worker]:
    """Every live worker, and those that are to rest when they come back.

    Raises:
        Problem: 503 while Redis or Postgres is away.
    """
    alive = {said.name: (said, lag) for said, lag in await _look(resources)}
    async with resources.transaction() as session:
        drains = {d.worker: d for d in await session.scalars(queries.list_drains())}
    shown = [
        _present(resources, name, alive.get(name), drains.get(name))
        for name in sorted(alive.keys() | drains.keys())
    ]
    return Page[Worker](data=shown, has_more=False, next_cursor=None)


async def get(resources: Resources, name: str) -> Worker:
    """One worker.

    Raises:
        Problem: 404 for a name that is neither alive nor told to rest.
    """
    alive = await _look(resources, _known(name))
    async with resources.transaction() as session:
        drain = (await session.scalars(queries.list_drains([name]))).one_or_none()
    if not alive and drain is None:
        raise _unknown()
    return _present(resources, name, alive[0] if alive else None, drain)


async def drain(resources: Resources, principal: Principal, name: str) -> Worker:
    """Tell a worker to take no more work. A second time changes nothing.

    Raises:
        Problem: 404 for a name that is neither alive nor told to rest.
    """
    alive = await _look(resources, _known(name))
    async with resources.transaction() as session:
        known = (await session.scalars(queries.list_drains([name]))).one_or_none()
        if not alive and known is None:
            raise _unknown()
        order = queries.order_drain(name, principal.key_id)
        ordered = known or (await session.scalars(order)).one()
    await _tell(resources, name)
    return _present(resources, name, alive[0] if alive else None, ordered)


async def resume(resources: Resources, name: str) -> Worker:
    """Let a worker take work again. A second time changes nothing.

    Raises:
        Problem: 404 for a name that is neither alive nor told to rest.
    """
    alive = await _look(resources, _known(name))
    async with resources.transaction() as session:
        lifted = (await session.scalars(queries.lift_drain(name))).one_or_none()
    if not alive and lifted is None:
        raise _unknown()
    await _tell(resources, name)
    return _present(resources, name, alive[0] if alive else None, None)


async def _look(
    resources: Resources, name: str | None = None
) -> Sequence[tuple[WorkerAnnouncement, float]]:
    try:
        return await resources.roster.look(name)
    except RedisDown:
        raise Problem("workers_unknown") from None


async def _tell(resources: Resources, name: str) -> None:
    """A hint; without it the worker asks the ledger at its next heartbeat."""
    if resources.circuit.is_open:
        return
    with contextlib.suppress(RedisDown):
        await resources.circuit.call(resources.redis.publish(DRAIN_CHANNEL, name))


def _known(name: str) -> str:
    """The name; one that Postgres cannot hold is the name of none."""
    if "\0" in name:
        raise _unknown()
    return name


def _unknown() -> Problem:
    return Problem("not_found", "No live worker has this name.")


def _present(
    resources: Resources,
    name: str,
    alive: tuple[WorkerAnnouncement, float] | None,
    drain: WorkerDrain | None,
) -> Worker:
    said, lag = alive or (None, None)
    here = f"{resources.settings.public_url.rstrip('/')}/v1/workers/{quote(name, safe='')}"
    return Worker(
        name=name,
        kind=said.kind if said else None,
        state=_standing(said, drain),
        device=said.device if said else None,
        models=[_model(model) for model in said.models] if said else [],
        jobs=said.jobs if said else 0,
        threads=said.threads if said else None,
        memory=WorkerMemory(
            used=said.memory_bytes if said else None, limit=said.memory_limit if said else None
        ),
        dispatches=said.dispatches if said else False,
        lag=round(lag, 3) if lag is not None else None,
        version=said.version if said else None,
        started_at=said.started_at if said else None,
        drain=_order(drain),
        links=WorkerLinks(self=here, drain=f"{here}/drain", resume=f"{here}/resume"),
    )


def _standing(said: WorkerAnnouncement | None, drain: WorkerDrain | None) -> WorkerStanding:
    if said is None:
        return WorkerStanding.AWAY
    state = WorkerStanding(said.state)
    return WorkerStanding.DRAINING if drain is not None and state in _RESTING else state


def _order(drain: WorkerDrain | None) -> Drain | None:
    if drain is None:
        return None
    return Drain(
        requested_at=drain.requested_at,
        requested_by=drain.requested_by,
        drained_at=drain.drained_at,
    )


def _model(model: AnnouncedModel) -> WorkerModel:
    return WorkerModel(
        name=model.name,
        state=model.state,
        rows=model.rows,
        sizes=[Size(width=width, height=height) for width, height in model.sizes],
        content_hash=model.content_hash,
        memory_bytes=model.memory_bytes,
    )
