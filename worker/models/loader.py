"""Load the models that jobs wait for and nobody has warm; leave the others to who has.

A worker takes messages of its warm models only (`worker.core.queues`), so a job goes to a worker
that holds its model, as long as there is one that keeps up. This thread looks at the queues of
the cold models: it loads one when jobs wait there and no live worker takes them, or when they have
waited too long in spite of it.
"""

import threading
import time
from collections.abc import Callable

import redis

from shared.core import broker, worker_registry
from shared.core.logging import get_logger
from shared.core.worker_registry import ModelState, WorkerState
from worker.models.cache import Residency

log = get_logger(__name__)


_LOOK_SECONDS = 0.25


_COURTESY_SECONDS = 1.0
"""For so long a worker that would have to unload something leaves a model to those with room."""


_CLAIM_MS = 10_000
"""Until the roster shows that the model is being loaded."""


class ModelKeeper:
    """The thread that looks, and loads."""

    def __init__(
        self,
        models: Residency,
        client: "redis.Redis",
        name: Callable[[], str],
        may_load: Callable[[], bool],
        patience: float,
    ) -> None:
        """`patience`: seconds that jobs may wait for workers that have their model warm."""
        self._models = models
        self._redis = client
        self._name = name
        self._may_load = may_load
        self._patience = patience
        self._waiting_since: dict[str, float] = {}
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._run, name="models", daemon=True)

    def start(self) -> None:
        """Begin to look; a worker that has all of its models loaded has nothing to look for."""
        if self._models.cold:
            self._thread.start()

    def close(self) -> None:
        """Stop looking. A load in progress ends with the process."""
        self._closing.set()

    def _run(self) -> None:
        while not self._closing.wait(_LOOK_SECONDS):
            try:
                if self._may_load():
                    self.look()
            except (redis.RedisError, OSError) as error:
                log.warning("queues_not_seen", error=type(error).__name__)
            except Exception:
                log.exception("model_keeper_failed")

    def look(self) -> str | None:
        """One look at the queues; the model that was loaded, if any.

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
            if name in served and waited < self._patience:
                continue
            victims = self._models.victims_for(name, wanted)
            if victims is None or (victims and waited < _COURTESY_SECONDS):
                continue
            if not self._claim(name):
                continue
            log.info("model_needed", model=name, unloads=victims)
            self._models.load(name, victims)
            return name
        return None

    def _wanted(self) -> set[str]:
        """Models of this worker for which messages wait."""
        queues = [
            (spec.name, broker.generate_queue(spec.name, lane))
            for spec in self._models.specs
            for lane in broker.LANES
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
            for worker in worker_registry.read(self._redis)
            if (worker.takes_work or worker.state is WorkerState.WARMING)
            and worker.name != self._name()
            for model in worker.models
            if model.state in (ModelState.WARM, ModelState.WARMING)
        }

    def _claim(self, name: str) -> bool:
        key = broker.loading_key(name)
        return bool(self._redis.set(key, self._name(), nx=True, px=_CLAIM_MS))
