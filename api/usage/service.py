"""What a key has used and what is left."""

from datetime import UTC, datetime, timedelta

from api.deps import Resources
from api.principal import Principal
from api.publishing import RedisDown
from api.usage.admission import midnight
from api.usage.schemas import Allowance, Usage
from shared.quotas import statements


async def usage(resources: Resources, principal: Principal) -> Usage:
    """The key's limits with what it has used of them now."""
    quotas = principal.quotas
    async with resources.tenant_transaction(principal) as session:
        used = await session.execute(statements.measure_use(principal.key_id))
        jobs, queued, reserved, spent = used.one()
        kept = (await session.scalars(statements.sum_uploads(principal.key_id))).one()
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
