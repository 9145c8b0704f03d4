"""What a key has used, which models there are, and how deep the queues are."""

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

from api.admin.schemas import Allowance, Lora, LoraHolder, Model, QueueDepth, ServingWorker, Usage
from api.context import Resources
from api.core.principal import Principal
from api.core.publisher import RedisDown
from api.core.serialization import Page
from api.jobs.admission import midnight
from api.jobs.loras import own_loras
from api.jobs.schemas import UploadedLora
from shared.admin import queries
from shared.core.broker import QUEUE_CLASSES
from shared.core.families import FAMILIES, MIN_SIZE_MULTIPLE, schedulers_for
from shared.core.model_catalog import LoraSpec, ModelCatalog, ModelSpec, lora_fits
from shared.core.worker_registry import WorkerHeartbeat
from shared.images import queries as image_queries
from shared.jobs.models import UploadedLora as RowOfLora
from shared.jobs.queries import quotas as quota_queries


async def usage(resources: Resources, principal: Principal) -> Usage:
    """The key's limits with what it has used of them now."""
    quotas = principal.quotas
    async with resources.tenant_transaction(principal) as session:
        used = await session.execute(quota_queries.measure_use(principal.key_id))
        jobs, queued, reserved, spent = used.one()
        kept = (await session.scalars(image_queries.sum_uploads(principal.key_id))).one()
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
    if limit is None:
        return _allowance(None, None)
    try:
        window = await resources.circuit_breaker.call(resources.rates.peek, principal.key_id, limit)
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
    workers = await resources.workers.workers()
    families = await resources.workers.families()
    models = [
        _serialize_model(spec, workers, families.get(spec.name), resources.catalog)
        for spec in resources.catalog.model
    ]
    return Page.whole(models)


async def list_loras(resources: Resources, principal: Principal) -> Page[Lora]:
    """Every declared LoRA, then the tenant's own, and who has them loaded."""
    workers = await resources.workers.workers()
    families = await resources.workers.families()
    own = await own_loras(resources, principal)
    catalog = resources.catalog
    loras: list[LoraSpec | RowOfLora] = [*catalog.lora]
    loras += [lora for name, lora in own.items() if catalog.get_lora(name) is None]
    shown = [
        Lora(
            name=lora.name,
            family=lora.family,
            trigger_words=list(lora.trigger_words),
            models=[name for name, family in families.items() if lora_fits(lora.family, family)],
            workers=None if workers is None else _holding(lora, workers),
            uploaded=None if isinstance(lora, LoraSpec) else UploadedLora.of(lora),
        )
        for lora in loras
    ]
    return Page.whole(shown)


def _holding(lora: LoraSpec | RowOfLora, workers: Sequence[WorkerHeartbeat]) -> list[LoraHolder]:
    """Other tenants may have uploaded other files of the same name."""
    own = None if isinstance(lora, LoraSpec) else lora.sha256
    return [
        LoraHolder(name=worker.name, model=model.name, sha256=sha256)
        for worker in workers
        for model in worker.models
        for name, sha256 in model.loras.items()
        if name == lora.name and own in (None, sha256)
    ]


def _serialize_model(
    spec: ModelSpec,
    workers: Sequence[WorkerHeartbeat] | None,
    family: str | None,
    catalog: ModelCatalog,
) -> Model:
    """`workers` are all that live; None: Redis is unavailable."""
    facts = FAMILIES.get(family or "")
    nets = [net.name for net in catalog.controlnet if family is not None and net.fits(family)]
    serving = [
        ServingWorker.of(
            worker,
            model_state=model.state,
            batch_size=model.batch_size,
            content_hash=model.content_hash,
        )
        for worker in workers or ()
        for model in worker.models
        if model.name == spec.name
    ]
    return Model.of(
        spec,
        default=spec is catalog.default,
        default_scheduler=spec.scheduler,
        family=family,
        size_multiple=facts.size_multiple if facts else MIN_SIZE_MULTIPLE,
        schedulers=list(schedulers_for(family)),
        controlnets=nets,
        served=None if workers is None else any(w.model_state != "broken" for w in serving),
        workers=None if workers is None else serving,
    )


_FRESH_SECONDS = 1.0

_SHARE = 0.05
"""Of the time spent counting, at most: a million waiting jobs take a while."""

_STATEMENT_TIMEOUT_SECONDS = 5.0
"""For that million, an operator's request may take longer than a tenant's."""

Queue = tuple[str, str]
"""(model, queue_class)."""


@dataclass(frozen=True)
class Counted:
    """What one reading of the database gave. Queues without jobs are in none of the two."""

    at: float
    """By this process's clock, when it was asked."""
    waiting: dict[Queue, tuple[int, float]] = field(default_factory=dict)
    """(jobs that may run, seconds that the oldest had waited)."""
    running: dict[Queue, int] = field(default_factory=dict)


class QueueDepths:
    """What this process knows of the queues. The database is asked: Redis has but a part of
    them."""

    def __init__(self) -> None:
        self._counted: Counted | None = None
        self._fresh_until = 0.0
        self._lock = asyncio.Lock()

    async def poll(self, resources: Resources) -> Counted:
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


async def _count(resources: Resources) -> Counted:
    counted = Counted(at=time.monotonic())
    async with resources.transaction(_STATEMENT_TIMEOUT_SECONDS) as session:
        for model, queue_class, jobs, age in await session.execute(queries.count_waiting()):
            counted.waiting[model, queue_class] = jobs, float(age)
        for model, queue_class, jobs in await session.execute(queries.count_running()):
            counted.running[model, queue_class] = jobs
    return counted


async def list_queues(resources: Resources) -> Page[QueueDepth]:
    """Both queue classes of every declared model, then of models that are gone and still have jobs.

    Raises:
        Problem: 503 while Postgres is unavailable.
    """
    counted = await resources.get(QueueDepths).poll(resources)
    declared = [spec.name for spec in resources.catalog.model]
    others = {model for model, _ in (*counted.waiting, *counted.running)} - set(declared)
    queues = [
        _serialize_queue(counted, (model, queue_class))
        for model in (*declared, *sorted(others))
        for queue_class in QUEUE_CLASSES
    ]
    return Page.whole(queues)


def _serialize_queue(counted: Counted, queue: Queue) -> QueueDepth:
    jobs, waited = counted.waiting.get(queue, (0, 0.0))
    age = waited + time.monotonic() - counted.at
    return QueueDepth(
        model=queue[0],
        queue_class=queue[1],
        queued=jobs,
        running=counted.running.get(queue, 0),
        oldest_age_seconds=round(age, 3) if queue in counted.waiting else None,
    )
