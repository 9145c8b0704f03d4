"""The rules of queues: which there are, and how deep each is."""

from api.deps import Resources
from api.queues.depths import Counted, Key
from api.queues.schemas import QueueDepth
from api.wire import Page
from shared.queue.names import LANES


async def list_queues(resources: Resources) -> Page[QueueDepth]:
    """Both lanes of every declared model, then of models that are gone and still have jobs.

    Raises:
        Problem: 503 while Postgres is away.
    """
    counted = await resources.queues.look(resources)
    declared = [spec.name for spec in resources.catalog.model]
    models = [*declared, *counted.models_beyond(declared)]
    queues = [_present(counted, (model, lane)) for model in models for lane in LANES]
    return Page[QueueDepth](data=queues, has_more=False, next_cursor=None)


def _present(counted: Counted, key: Key) -> QueueDepth:
    model, lane = key
    age = counted.age(key)
    return QueueDepth(
        model=model,
        lane=lane,
        queued=counted.waiting[key][0] if key in counted.waiting else 0,
        running=counted.running.get(key, 0),
        oldest_age_seconds=round(age, 3) if age is not None else None,
    )
