"""Which of a worker's models are loaded, under a limit on their memory."""

import gc
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from shared.core import broker
from shared.core.errors import JobError, ModelUnavailable
from shared.core.logging import get_logger
from shared.core.model_catalog import ModelSpec
from shared.core.worker_registry import ModelState, ModelStatus
from worker.engine.checkpoint import NOT_LOADED
from worker.engine.interface import Engine, ModelFacts
from worker.engine.simulated import SOURCE_PREFIX, SimulatedSpeed


def estimate_memory(spec: ModelSpec) -> int:
    """Bytes on disk of the weights that are to lie on the device; 0 where they are not here yet.

    A guess: weights may be converted on loading. Once loaded, what was measured counts.
    """
    if spec.source.startswith(SOURCE_PREFIX):
        return int(SimulatedSpeed.from_source(spec.source).memory_bytes)
    folder = Path(spec.source)
    if not folder.is_dir():
        return 0
    parts = {
        part.name: sum(file.stat().st_size for file in _weights(part, spec.variant))
        for part in folder.iterdir()
        if part.name not in NOT_LOADED
        and (spec.text_encoder == "device" or not part.name.startswith("text_encoder"))
    }
    if spec.gguf is not None:
        parts["transformer"] = Path(spec.gguf).stat().st_size if Path(spec.gguf).exists() else 0
    adapter = _estimate_ip_adapter(spec)
    if spec.offload == "group":
        return adapter
    sizes = parts.values()
    return adapter + (max(sizes, default=0) if spec.offload == "model" else sum(sizes))


def _weights(part: Path, variant: str | None) -> list[Path]:
    """The files of a component that are loaded, as diffusers chooses them, without their twins in
    other precisions: `model.fp16-00001-of-00002.safetensors` is of the variant `fp16`."""
    kinds = defaultdict[str, list[Path]](list)
    for file in part.glob("*.safetensors"):
        kinds[file.name.split(".")[1].split("-")[0]].append(file)
    return kinds[variant or "safetensors"] or kinds["safetensors"]


def _estimate_ip_adapter(spec: ModelSpec) -> int:
    """Its weights are on the device whatever is offloaded, its image encoder as text encoders."""
    if spec.ip_adapter is None:
        return 0
    folder = Path(spec.ip_adapter.source)
    files = [folder / spec.ip_adapter.file]
    if spec.text_encoder == "device" and spec.offload == "none":
        files += (folder / spec.ip_adapter.image_encoder).glob("*.safetensors")
    return sum(file.stat().st_size for file in files if file.exists())


# A model is unloaded when another is needed, it was used least recently, and no job in flight needs
# it any more; only jobs of these two models wait for that: engines have threads of their own.
# Messages of a model that is not warm stay in its queue (`accepts` is a filter of
# `worker.core.queues`).

log = get_logger(__name__)

_SHARE_OF_LOADING = 2
"""A model stays for at least this many times as long as it took to load, so that a worker that is
asked for everything at once spends a third of its time on loading at most."""

_FIRST_RETRY_SECONDS = 60.0

_LAST_RETRY_SECONDS = 3600.0
"""A model that could not be loaded is tried again after a minute, then two, up to an hour: the
cause may pass, and each try may unload another model."""


class ModelNotWarm(Exception):
    """The model is not loaded here now."""


@dataclass
class _Model:
    spec: ModelSpec
    state: ModelState = ModelState.COLD
    engine: Engine | None = None
    facts: ModelFacts | None = None
    """Kept when it is unloaded."""
    users: int = 0
    """Jobs in flight that need it."""
    warm_since: float = 0.0
    last_used: float = 0.0
    load_seconds: float = 0.0
    failures: int = 0
    """Times in a row that it could not be loaded."""
    retry_at: float = 0.0

    @property
    def memory(self) -> int:
        return self.facts.memory_bytes if self.facts else estimate_memory(self.spec)

    @property
    def spec_to_load(self) -> ModelSpec:
        """With the rows and threads of the first time: a warm-up that measured again might choose
        others, and both may be part of what fixes an image's bytes."""
        if self.facts is None:
            return self.spec
        measured = {
            "max_batch_size": self.facts.batch_size,
            "cpu_threads": self.facts.cpu_threads,
        }
        return self.spec.model_copy(update=measured)


@dataclass
class ModelCache:
    """The models of one worker process."""

    specs: Sequence[ModelSpec]
    start_engine: Callable[[ModelSpec], Engine]
    """Opens, loads and warms an engine; blocks."""
    limit: int | None = None
    """Bytes; None: everything stays loaded."""
    stay: float = 0.0
    """Seconds for which a model is kept although another is waited for, while it has work."""
    clock: Callable[[], float] = time.monotonic
    changed: Callable[[], None] = lambda: None
    """Called after each change of a state, on the thread that made it."""
    device: str = "none"
    """The device that the engines run on; known with the first."""
    _models: dict[str, _Model] = field(init=False)
    _by_queue: dict[str, _Model] = field(init=False)
    _condition: threading.Condition = field(default_factory=threading.Condition)
    _closed: bool = False

    def __post_init__(self) -> None:
        self._models = {spec.name: _Model(spec) for spec in self.specs}
        self._by_queue = {
            broker.generate_queue(name, queue_class): model
            for name, model in self._models.items()
            for queue_class in broker.QUEUE_CLASSES
        }

    # --- for those who use models ---------------------------------------------------------------

    @property
    def engines(self) -> dict[str, Engine]:
        """The loaded ones, by name."""
        held = [(name, model.engine) for name, model in self._models.items()]
        return {name: engine for name, engine in held if engine is not None}

    def accepts(self, queue: str) -> bool:
        """Whether messages of this queue may be taken: its model is warm."""
        model = self._by_queue.get(queue)
        return model is not None and model.state is ModelState.WARM

    @contextmanager
    def use(self, name: str) -> Iterator[Engine]:
        """The engine of a model, which stays loaded for the length of the block.

        Raises:
            ModelNotWarm: it is not loaded; the job is for another worker, or for later.
            ModelUnavailable: this worker does not serve it at all.
        """
        model = self._models.get(name)
        if model is None:
            raise ModelUnavailable(f"this worker does not serve the model {name}")
        with self._condition:
            if model.engine is None or model.state is ModelState.WARMING:
                raise ModelNotWarm(name)
            model.users += 1
            engine = model.engine
        try:
            yield engine
        finally:
            with self._condition:
                model.users -= 1
                model.last_used = self.clock()
                self._condition.notify_all()

    def status(self) -> tuple[ModelStatus, ...]:
        """As the API shows them."""
        return tuple(
            ModelStatus(
                name=model.spec.name,
                state=model.state,
                content_hash=model.facts.content_hash if model.facts else None,
                family=model.facts.family if model.facts else None,
                batch_size=model.facts.batch_size if model.facts else None,
                sizes=model.spec.sizes_to_warm,
                memory_bytes=model.facts.memory_bytes if model.facts else None,
                loras=engine.loras if (engine := model.engine) is not None else {},
            )
            for model in self._models.values()
        )

    @property
    def used_bytes(self) -> int:
        """What the loaded models take: on a GPU what torch has allocated there, else weights."""
        engines = list(self.engines.values())
        allocated = [engine.allocated_bytes for engine in engines]
        weights = sum(engine.model.memory_bytes for engine in engines)
        return max([weights, *(count for count in allocated if count is not None)])

    # --- for who decides what is loaded ---------------------------------------------------------

    @property
    def cold(self) -> list[str]:
        """Models that can be loaded and are not; broken ones when their time has come."""
        now = self.clock()
        return [
            name
            for name, model in self._models.items()
            if model.state is ModelState.COLD
            or (model.state is ModelState.BROKEN and now >= model.retry_at)
        ]

    def load_first(self) -> None:
        """At the start: in the order of the command line as many as the limit allows, one at least.

        Raises:
            ModelUnavailable: a checkpoint cannot be served.
        """
        for model in self._models.values():
            if self.engines and not self._fits(model):
                log.info("model_stays_cold", model=model.spec.name)
                continue
            self._load(model)

    def eviction_candidates(self, name: str, wanted: Collection[str] = ()) -> list[str] | None:
        """The models to unload before this one can be loaded; None: they must stay for now.

        Args:
            name: the model that is needed.
            wanted: models for which messages wait; those have their full stay.
        """
        needed = self._models[name]
        if self._fits(needed):
            return []
        warm = [m for m in self._models.values() if m.state is ModelState.WARM]
        warm.sort(key=lambda m: (m.users > 0, m.last_used))
        chosen: list[str] = []
        freed = 0
        for model in warm:
            if not self._may_go(model, wanted):
                continue
            chosen.append(model.spec.name)
            freed += model.memory
            if self._fits(needed, freed):
                return chosen
        # One that is larger than the limit has the worker to itself.
        return chosen if len(chosen) == len(warm) else None

    def load(self, name: str, evicted: Sequence[str]) -> bool:
        """Unload the evicted as their last jobs end, then load and warm the model. Blocks.

        Returns:
            Whether it is warm now. One that cannot be loaded is broken, and tried again later.
        """
        for model_name in evicted:
            self._retire(self._models[model_name])
        if self._closed:
            return False
        model = self._models[name]
        try:
            self._load(model)
        except JobError as error:
            self._broken(model, error.message)
            return False
        except Exception as error:
            log.exception("model_not_loaded", model=name)
            self._broken(model, type(error).__name__)
            return False
        return True

    def close(self) -> None:
        with self._condition:
            self._closed = True
            self._condition.notify_all()
        for engine in self.engines.values():
            engine.close()

    def _fits(self, model: _Model, freed: int = 0) -> bool:
        return self.limit is None or self.used_bytes - freed + model.memory <= self.limit

    def _may_go(self, model: _Model, wanted: Collection[str]) -> bool:
        stay = _SHARE_OF_LOADING * model.load_seconds
        if model.users or model.spec.name in wanted:
            stay = max(stay, self.stay)
        return self.clock() - model.warm_since >= stay

    def _load(self, model: _Model) -> None:
        self._set(model, ModelState.WARMING)
        begun = self.clock()
        engine = self.start_engine(model.spec_to_load)
        with self._condition:
            model.engine, model.facts = engine, engine.model
            model.warm_since = model.last_used = self.clock()
            model.load_seconds = model.warm_since - begun
            model.failures = 0
            self.device = engine.model.device
        self._set(model, ModelState.WARM)
        if self.limit is not None and self.used_bytes > self.limit:
            log.warning("models_over_limit", used=self.used_bytes, limit=self.limit)

    def _retire(self, model: _Model) -> None:
        self._set(model, ModelState.RETIRING)
        with self._condition:
            self._condition.wait_for(lambda: self._closed or model.users == 0)
            if self._closed:
                return
            engine, model.engine = model.engine, None
        if engine is not None:
            engine.close()
            del engine
            gc.collect()  # modules refer to each other: their memory is free when they are
        self._set(model, ModelState.COLD)
        log.info("model_unloaded", model=model.spec.name)

    def _broken(self, model: _Model, reason: str) -> None:
        pause = min(_FIRST_RETRY_SECONDS * 2**model.failures, _LAST_RETRY_SECONDS)
        model.failures += 1
        model.retry_at = self.clock() + pause
        log.error("model_broken", model=model.spec.name, reason=reason, retry_in=pause)
        self._set(model, ModelState.BROKEN)

    def _set(self, model: _Model, state: ModelState) -> None:
        model.state = state
        self.changed()
