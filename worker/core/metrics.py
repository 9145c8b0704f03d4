"""Metrics of a worker: its periodic tasks, webhooks, models, state and memory."""

import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sized
from contextlib import contextmanager
from typing import Any

from prometheus_client import Counter, Gauge, Histogram
from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from shared.core.logging import get_logger
from worker.engine.interface import Engine

DUTY_SECONDS = Histogram(
    "darkroom_duty_seconds",
    "How long the leading dispatcher took for a duty.",
    ["duty"],
    buckets=(0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30),
)


DUTY_LAST_SUCCESS = Gauge(
    "darkroom_duty_last_success_timestamp_seconds",
    "When a duty was last done without an error, in seconds since 1970.",
    ["duty"],
)


DUTY_ROWS = Counter(
    "darkroom_duty_rows",
    "Rows that a duty has changed, published or removed.",
    ["duty"],
)


DUTY_FAILURES = Counter(
    "darkroom_duty_failures",
    "Duties that ended with an error; the next round tries again.",
    ["duty"],
)


WEBHOOK_ATTEMPTS = Counter(
    "darkroom_webhook_attempts",
    "Requests to webhook receivers by what they mean for the delivery (delivered, try_again, "
    "give_up, gone) and by the code of the error, `none` without one.",
    ["outcome", "code"],
)


WEBHOOK_SECONDS = Histogram(
    "darkroom_webhook_attempt_seconds",
    "From the beginning of a request to a receiver to its answer or error.",
    ["outcome"],
    buckets=(0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 15, 30, 60),
)


MODEL_LOAD_SECONDS = Histogram(
    "darkroom_model_load_seconds",
    "Until a model can be used, by phase: load (from disk to the device), warm_up (first images).",
    ["model", "phase"],
    buckets=(0.5, 1, 2.5, 5, 10, 20, 40, 80, 160, 320, 640),
)


@contextmanager
def measured_duty(duty: str) -> Iterator[Callable[[object], None]]:
    """Measure a duty; give what comes into the block what the duty returned."""
    rows = DUTY_ROWS.labels(duty)
    begun = time.perf_counter()
    try:
        yield lambda result: rows.inc(_rows_of(result))
    except BaseException:
        DUTY_FAILURES.labels(duty).inc()
        raise
    else:
        DUTY_LAST_SUCCESS.labels(duty).set_to_current_time()
    finally:
        DUTY_SECONDS.labels(duty).observe(time.perf_counter() - begun)


def _rows_of(result: object) -> int:
    if isinstance(result, int):
        return result
    return len(result) if isinstance(result, Sized) else 0


log = get_logger(__name__)


Facts = Callable[[], Mapping[str, Any]]
"""What the worker announces of itself (see `worker.core.heartbeat`)."""


Engines = Callable[[], Mapping[str, Engine]]


def _none() -> Mapping[str, Engine]:
    return {}


class WorkerMetrics(Collector):
    """The numbers of one worker process. Scrapes run on threads of their own."""

    def __init__(self, facts: Facts, engines: Engines = _none) -> None:
        self._facts = facts
        self._engines = engines

    def describe(self) -> Iterable[Metric]:
        """Every family, without numbers."""
        return [*_Worker().all, *_Engines().all, _memory_family()]

    def collect(self) -> Iterator[Metric]:
        """Every family with the numbers of now."""
        facts = self._facts()
        worker = _Worker()
        worker.state.add_metric([str(facts["state"])], 1)
        worker.jobs.add_metric([], facts["jobs"])
        if "dispatches" in facts:
            worker.leads.add_metric([], int(facts["dispatches"]))
        yield from worker.all
        engines = _Engines()
        for model, engine in list(self._engines().items()):
            engines.add(model, engine)
        yield from engines.all
        yield _device_memory()


class _Worker:
    def __init__(self) -> None:
        self.state = GaugeMetricFamily(
            "darkroom_worker_state",
            "1 for the state that the worker is in: starting, warming, ready, busy, draining, "
            "faulty (it is about to end, to be started again).",
            labels=["state"],
        )
        self.jobs = GaugeMetricFamily(
            "darkroom_worker_jobs", "Jobs in the worker's hands.", labels=[]
        )
        self.leads = GaugeMetricFamily(
            "darkroom_dispatcher_leads",
            "1 where this process is the one that dispatches; one in the whole system should be.",
            labels=[],
        )

    @property
    def all(self) -> list[Metric]:
        return [self.state, self.jobs, self.leads]


class _Engines:
    """What `EngineCounters` says, model by model."""

    def __init__(self) -> None:
        self.gpu_seconds = CounterMetricFamily(
            "darkroom_gpu_seconds",
            "Seconds that the device worked for images, canceled ones too; warm-up left out.",
            labels=["model"],
        )
        self.ticks = CounterMetricFamily(
            "darkroom_engine_ticks", "Calls of the denoiser for a whole batch.", labels=["model"]
        )
        self.rows = CounterMetricFamily(
            "darkroom_engine_rows",
            "Rows of all batches: live (an image's) or padding (computed for nobody). Live rows a "
            "tick are the batch size; padding's share is the waste.",
            labels=["model", "kind"],
        )
        self.shape = GaugeMetricFamily(
            "darkroom_engine_batch_rows",
            "Rows of a full batch at the model's default size.",
            labels=["model"],
        )
        self.steps = CounterMetricFamily(
            "darkroom_engine_steps", "Denoising steps of images, by lane.", labels=["model", "lane"]
        )
        self.pauses = CounterMetricFamily(
            "darkroom_engine_pauses",
            "How often a started bulk row had to wait for interactive ones.",
            labels=["model"],
        )
        self.shrinks = CounterMetricFamily(
            "darkroom_engine_memory_shrinks",
            "How often a batch was made smaller because the device's memory did not suffice.",
            labels=["model"],
        )
        self.canceled = CounterMetricFamily(
            "darkroom_engine_images_canceled", "Images taken back half made.", labels=["model"]
        )

    @property
    def all(self) -> list[Metric]:
        return [
            *(self.gpu_seconds, self.ticks, self.rows, self.shape),
            *(self.steps, self.pauses, self.shrinks, self.canceled),
        ]

    def add(self, model: str, engine: Engine) -> None:
        counters = engine.counters
        self.gpu_seconds.add_metric([model], engine.busy_seconds)
        self.ticks.add_metric([model], counters.ticks)
        self.rows.add_metric([model, "live"], counters.live_rows)
        self.rows.add_metric([model, "padding"], counters.padded_rows)
        self.shape.add_metric([model], engine.model.rows)
        for lane, steps in counters.steps_by_lane.items():
            self.steps.add_metric([model, lane], steps)
        self.pauses.add_metric([model], counters.pauses)
        self.shrinks.add_metric([model], counters.out_of_memory_shrinks)
        self.canceled.add_metric([model], counters.canceled)


def _memory_family() -> GaugeMetricFamily:
    return GaugeMetricFamily(
        "darkroom_device_memory_bytes",
        "Memory of the GPU: total and free of all its processes, reserved and allocated of this.",
        labels=["device", "kind"],
    )


def _device_memory() -> GaugeMetricFamily:
    """Of the devices that torch holds memory of. Neither torch nor CUDA is started for it."""
    family = _memory_family()
    torch = sys.modules.get("torch")
    if torch is None or not torch.cuda.is_initialized():
        return family
    try:
        for index in range(torch.cuda.device_count()):
            reserved = torch.cuda.memory_reserved(index)
            if not reserved:
                continue  # to ask for more would take memory of a device that is not ours
            free, total = torch.cuda.mem_get_info(index)
            name = f"cuda:{index}"
            family.add_metric([name, "total"], total)
            family.add_metric([name, "free"], free)
            family.add_metric([name, "reserved"], reserved)
            family.add_metric([name, "allocated"], torch.cuda.memory_allocated(index))
    except Exception as error:  # a poisoned context fails every call; the other metrics are true
        log.warning("device_memory_not_known", error=type(error).__name__)
    return family
