"""What a key has used, which models there are, and how deep the queues are."""

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

from api.admin.schemas import Allowance, Model, QueueDepth, ServingWorker, Usage
from api.context import Resources
from api.core.principal import Principal
from api.core.publisher import RedisDown
from api.core.quotas import midnight
from api.core.serialization import Page
from shared.admin import queries
from shared.core import quotas as quota_queries
from shared.core.broker import LANES
from shared.core.model_catalog import ModelSpec
from shared.core.schedulers import SCHEDULERS
from shared.core.worker_registry import WorkerAnnouncement

if TYPE_CHECKING:
    from api.context import Resources


async def usage(resources: Resources, principal: Principal) -> Usage:
    """The key's limits with what it has used of them now."""
    quotas = principal.quotas
    async with resources.tenant_transaction(principal) as session:
        used = await session.execute(quota_queries.measure_use(principal.key_id))
        jobs, queued, reserved, spent = used.one()
        kept = (await session.scalars(quota_queries.sum_uploads(principal.key_id))).one()
    tomorrow = midnight() + timedelta(days=1)
    return Usage(
        key_id=principal.key_id,
        requests_per_minute=await _requests(resources, principal),
        queued_cost=_allowance(quotas.queued_cost, queued),
        concurrent_jobs=_allowance(quotas.concurrent_jobs, jobs),
        gpu_seconds_per_day=_allowance(
            quotas.gpu_seconds_per_day, spent, tomorrow, reserved=reserved
        ),
        upload_bytes=_allowance(quotas.upload_bytes, kept),
        max_pixels=quotas.max_pixels,
        models=quotas.models,
    )


async def _requests(resources: Resources, principal: Principal) -> Allowance:
    limit = principal.quotas.requests_per_minute
    if limit is None or resources.circuit.is_open:
        return _allowance(limit, None)
    try:
        window = await resources.circuit.call(resources.rates.look(principal.key_id, limit))
    except RedisDown:
        return _allowance(limit, None)
    resets_at = datetime.now(UTC) + timedelta(seconds=window.seconds_to_reset)
    return _allowance(limit, limit - window.left, resets_at)


def _allowance(
    limit: float | None,
    used: float | None,
    resets_at: datetime | None = None,
    *,
    reserved: float | None = None,
) -> Allowance:
    left = None if limit is None or used is None else max(0, limit - used - (reserved or 0))
    return Allowance(limit=limit, used=used, reserved=reserved, left=left, resets_at=resets_at)


async def list_models(resources: Resources) -> Page[Model]:
    """Every declared model, the default first."""
    workers = await resources.roster.workers()
    models = [
        _present_model(
            spec, _serving(spec.name, workers), is_default=spec is resources.catalog.default
        )
        for spec in resources.catalog.model
    ]
    return Page[Model](data=models, has_more=False, next_cursor=None)


def _serving(name: str, workers: Sequence[WorkerAnnouncement] | None) -> list[ServingWorker] | None:
    if workers is None:
        return None
    return [
        ServingWorker(
            name=worker.name,
            state=worker.state,
            model_state=served.state,
            device=worker.device,
            rows=served.rows,
            content_hash=served.content_hash,
        )
        for worker in workers
        for served in worker.models
        if served.name == name
    ]


def _present_model(spec: ModelSpec, workers: list[ServingWorker] | None, is_default: bool) -> Model:
    return Model(
        name=spec.name,
        default=is_default,
        default_width=spec.default_width,
        default_height=spec.default_height,
        max_width=spec.max_width,
        max_height=spec.max_height,
        default_steps=spec.default_steps,
        max_steps=spec.max_steps,
        default_guidance_scale=spec.default_guidance_scale,
        default_scheduler=spec.scheduler,
        schedulers=list(SCHEDULERS),
        served=None if workers is None else any(w.model_state != "broken" for w in workers),
        workers=workers,
    )


_FRESH_SECONDS = 1.0


_SHARE = 0.05
"""Of the time spent counting, at most: a million waiting jobs take a while."""


_PATIENCE_SECONDS = 5.0
"""For that million, an operator's look may take longer than a tenant's request."""


Key = tuple[str, str]
"""(model, lane)."""


@dataclass(frozen=True)
class Counted:
    """What one look at the ledger found. Queues without jobs are in none of the two."""

    at: float
    """By this process's clock, when it was asked."""
    waiting: dict[Key, tuple[int, float]] = field(default_factory=dict)
    """(jobs that may run, seconds that the oldest had waited)."""
    running: dict[Key, int] = field(default_factory=dict)

    def models_beyond(self, declared: Sequence[str]) -> list[str]:
        """Models with jobs that are not among the declared, in order."""
        found = {model for model, _ in (*self.waiting, *self.running)}
        return sorted(found - set(declared))

    def age(self, key: Key) -> float | None:
        """Seconds for which the oldest job waits by now; None where none waits."""
        if key not in self.waiting:
            return None
        return self.waiting[key][1] + time.monotonic() - self.at


class QueueDepths:
    """What this process knows of the queues. The ledger is asked: Redis has but a part of them."""

    def __init__(self) -> None:
        self._counted: Counted | None = None
        self._fresh_until = 0.0
        self._lock = asyncio.Lock()

    async def look(self, resources: "Resources") -> Counted:
        """The latest count, a second old at most, or as much older as counting takes long.

        Raises:
            Problem: 503 when the database does not answer in time.
        """
        async with self._lock:
            counted = self._counted
            if counted is None or time.monotonic() >= self._fresh_until:
                counted = self._counted = await _count(resources)
                ended = time.monotonic()
                self._fresh_until = ended + max(_FRESH_SECONDS, (ended - counted.at) / _SHARE)
        return counted


async def _count(resources: "Resources") -> Counted:
    counted = Counted(at=time.monotonic())
    async with resources.transaction(_PATIENCE_SECONDS) as session:
        for model, lane, jobs, age in await session.execute(queries.count_waiting()):
            counted.waiting[model, lane] = jobs, float(age)
        for model, lane, jobs in await session.execute(queries.count_running()):
            counted.running[model, lane] = jobs
    return counted


async def list_queues(resources: Resources) -> Page[QueueDepth]:
    """Both lanes of every declared model, then of models that are gone and still have jobs.

    Raises:
        Problem: 503 while Postgres is away.
    """
    counted = await resources.queues.look(resources)
    declared = [spec.name for spec in resources.catalog.model]
    models = [*declared, *counted.models_beyond(declared)]
    queues = [_present_queue(counted, (model, lane)) for model in models for lane in LANES]
    return Page[QueueDepth](data=queues, has_more=False, next_cursor=None)


def _present_queue(counted: Counted, key: Key) -> QueueDepth:
    model, lane = key
    age = counted.age(key)
    return QueueDepth(
        model=model,
        lane=lane,
        queued=counted.waiting[key][0] if key in counted.waiting else 0,
        running=counted.running.get(key, 0),
        oldest_age_seconds=round(age, 3) if age is not None else None,
    )
