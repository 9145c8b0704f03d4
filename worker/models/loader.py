"""Load models that jobs wait for and no worker has warm.

A worker takes messages of its warm models only (`worker.core.queues`), so a job goes to a worker
that holds its model, as long as there is one that keeps up. This thread looks at the queues of
the cold models: it loads one when jobs wait there and no live worker takes them, or when they have
waited too long in spite of it.
"""

import time
from collections.abc import Callable

import redis

from shared.core import broker, worker_registry
from shared.core.logging import get_logger
from shared.core.worker_registry import ModelState, WorkerState
from worker.core.loop import BackgroundLoop
from worker.models.cache import ModelCache

log = get_logger(__name__)
_POLL_SECONDS = 0.25

_COURTESY_SECONDS = 1.0
"""A worker that would have to unload something first gives others with room this long."""

_CLAIM_MS = 10_000
"""Until the worker registry shows that the model is being loaded."""


class ModelLoader(BackgroundLoop):
    """Looks at the queues of cold models, and loads those that are needed."""

    def __init__(
        self,
        models: ModelCache,
        client: "redis.Redis",
        name: Callable[[], str],
        may_load: Callable[[], bool],
        max_wait: float,
    ) -> None:
        """`max_wait`: seconds that jobs may wait for workers that have their model warm."""
        # A load in progress ends with the process.
        super().__init__("model-loader", _POLL_SECONDS, waits_first=True, join=0)
        self._models = models
        self._redis = client
        self._name = name
        self._may_load = may_load
        self._max_wait = max_wait
        self._waiting_since: dict[str, float] = {}

    def start(self) -> None:
        """Begin, unless all of its models are loaded."""
        if self._models.cold:
            super().start()

    def step(self) -> float | None:
        """Poll, unless the worker is about to leave."""
        if self._may_load():
            self.poll()
        return self._interval

    def poll(self) -> str | None:
        """Look at the queues once; the model that was loaded, if any.

        Raises:
            redis.RedisError: Redis cannot be reached.
        """
        now = time.monotonic()
        wanted = self._wanted()
        cold = self._models.cold
        self._waiting_since = {
            name: self._waiting_since.get(name, now) for name in wanted if name in cold
        }
        if not self._waiting_since:
            return None
        served = self._served_elsewhere()
        for name, since in sorted(self._waiting_since.items(), key=lambda entry: entry[1]):
            waited = now - since
            if name in served and waited < self._max_wait:
                continue
            evicted = self._models.eviction_candidates(name, wanted)
            if evicted is None or (evicted and waited < _COURTESY_SECONDS):
                continue
            if not self._claim(name):
                continue
            log.info("model_needed", model=name, unloads=evicted)
            self._models.load(name, evicted)
            return name
        return None

    def _wanted(self) -> set[str]:
        """Models of this worker for which messages wait."""
        queues = [
            (spec.name, broker.generate_queue(spec.name, queue_class))
            for spec in self._models.specs
            for queue_class in broker.QUEUE_CLASSES
        ]
        with self._redis.pipeline(transaction=False) as pipeline:
            for _, queue in queues:
                pipeline.llen(queue)
            depths = pipeline.execute()
        return {name for (name, _), depth in zip(queues, depths, strict=True) if depth}

    def _served_elsewhere(self) -> set[str]:
        """Models that another worker takes, or is about to."""
        return {
            model.name
            for worker in worker_registry.list_workers(self._redis)
            if (worker.takes_work or worker.state is WorkerState.WARMING)
            and worker.name != self._name()
            for model in worker.models
            if model.state in (ModelState.WARM, ModelState.WARMING)
        }

    def _claim(self, name: str) -> bool:
        key = broker.loading_key(name)
        return bool(self._redis.set(key, self._name(), nx=True, px=_CLAIM_MS))
