"""Metrics of a worker: its periodic tasks, webhooks, models, state and memory."""

import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sized
from contextlib import contextmanager
from typing import Any

from prometheus_client import Counter, Gauge, Histogram
from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from shared.core.broker import QUEUE_CLASSES
from shared.core.logging import get_logger
from shared.core.metrics import show_zeros
from shared.core.worker_registry import WorkerState
from worker.engine.interface import Engine

PERIODIC_TASK_SECONDS = Histogram(
    "darkroom_periodic_task_seconds",
    "How long the leading dispatcher took for a periodic task.",
    ["task"],
    buckets=(0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30),
)

PERIODIC_TASK_LAST_SUCCESS = Gauge(
    "darkroom_periodic_task_last_success_timestamp_seconds",
    "When a periodic task last ran without an error, in seconds since 1970.",
    ["task"],
)

PERIODIC_TASK_ROWS = Counter(
    "darkroom_periodic_task_rows",
    "Rows that a periodic task has changed, published or removed.",
    ["task"],
)

PERIODIC_TASK_FAILURES = Counter(
    "darkroom_periodic_task_failures",
    "Periodic tasks that ended with an error; the next round tries again.",
    ["task"],
)

WEBHOOK_ATTEMPTS = Counter(
    "darkroom_webhook_attempts",
    "Requests to webhook receivers by what they mean for the delivery (delivered, try_again, "
    "give_up, gone) and by the code of the error, `none` without one.",
    ["outcome", "code"],
)

WEBHOOK_SECONDS = Histogram(
    "darkroom_webhook_attempt_seconds",
    "Duration of a webhook request, up to the response or error.",
    ["outcome"],
    buckets=(0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 15, 30, 60),
)

MODEL_LOAD_SECONDS = Histogram(
    "darkroom_model_load_seconds",
    "Until a model can be used, by phase: load (from disk to the device), warm_up (first images).",
    ["model", "phase"],
    buckets=(0.5, 1, 2.5, 5, 10, 20, 40, 80, 160, 320, 640),
)


def watch_tasks(names: Iterable[str]) -> None:
    """Show the failures and rows of these periodic tasks from now on."""
    tasks = tuple(names)
    show_zeros(PERIODIC_TASK_FAILURES, tasks)
    show_zeros(PERIODIC_TASK_ROWS, tasks)


@contextmanager
def measured_task(name: str) -> Iterator[Callable[[object], None]]:
    """Measure a periodic task; give what comes into the block what the task returned."""
    rows = PERIODIC_TASK_ROWS.labels(name)
    begun = time.perf_counter()
    try:
        yield lambda result: rows.inc(_rows_of(result))
    except BaseException:
        PERIODIC_TASK_FAILURES.labels(name).inc()
        raise
    else:
        PERIODIC_TASK_LAST_SUCCESS.labels(name).set_to_current_time()
    finally:
        PERIODIC_TASK_SECONDS.labels(name).observe(time.perf_counter() - begun)


def _rows_of(result: object) -> int:
    if isinstance(result, int):
        return result
    return len(result) if isinstance(result, Sized) else 0


log = get_logger(__name__)

Facts = Callable[[], Mapping[str, Any]]
"""What the heartbeat says (see `worker.core.registration`)."""


def probes(facts: Facts) -> dict[str, Callable[[], bool]]:
    """What an orchestrator asks of a worker, by path.

    `/healthz`: a new process could do no better. `/startupz`: its models are loaded and warm.
    `/readyz`: it takes work; one that drains does not.
    """
    cold = (WorkerState.STARTING, WorkerState.WARMING)
    working = (WorkerState.READY, WorkerState.BUSY)
    return {
        "/healthz": lambda: facts()["state"] is not WorkerState.FAULTY,
        "/startupz": lambda: facts()["state"] not in cold,
        "/readyz": lambda: facts()["state"] in working,
    }


Engines = Callable[[], Mapping[str, Engine]]


class WorkerMetrics(Collector):
    """The numbers of one worker process. Scrapes run on threads of their own."""

    def __init__(self, facts: Facts, engines: Engines = dict) -> None:
        self._facts = facts
        self._engines = engines

    def describe(self) -> Iterable[Metric]:
        """Every family, without numbers."""
        return [*_Worker().all, *_Engines().all, _memory_family()]

    def collect(self) -> Iterator[Metric]:
        facts = self._facts()
        worker = _Worker()
        for state in WorkerState:
            worker.state.add_metric([state], int(facts["state"] == state))
        worker.jobs.add_metric([], facts["jobs"])
        if "dispatches" in facts:
            worker.leads.add_metric([], int(facts["dispatches"]))
        yield from worker.all
        engines = _Engines()
        for model, engine in list(self._engines().items()):
            engines.add(model, engine)
        yield from engines.all
        yield _device_memory()


class Families:
    """Metrics that are made anew at each scrape: its attributes."""

    @property
    def all(self) -> list[Metric]:
        """In the order in which they were made."""
        return list(vars(self).values())


class _Worker(Families):
    def __init__(self) -> None:
        self.state = GaugeMetricFamily(
            "darkroom_worker_state",
            "1 for the state that the worker is in, 0 for the others: starting, warming, ready, "
            "busy, draining, faulty (it is about to end, to be started again).",
            labels=["state"],
        )
        self.jobs = GaugeMetricFamily("darkroom_worker_jobs", "Jobs in flight.", labels=[])
        self.leads = GaugeMetricFamily(
            "darkroom_dispatcher_leads",
            "1 in the process that leads; exactly one in the whole system should.",
            labels=[],
        )


class _Engines(Families):
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
            "darkroom_engine_batch_size",
            "Rows of a full batch at the model's default size.",
            labels=["model"],
        )
        self.steps = CounterMetricFamily(
            "darkroom_engine_steps",
            "Denoising steps of images, by queue class.",
            labels=["model", "queue_class"],
        )
        self.pauses = CounterMetricFamily(
            "darkroom_engine_pauses",
            "How often a started bulk row had to wait for interactive ones.",
            labels=["model"],
        )
        self.shrinks = CounterMetricFamily(
            "darkroom_engine_memory_shrinks",
            "How often the largest batch was made smaller for lack of device memory.",
            labels=["model"],
        )
        self.canceled = CounterMetricFamily(
            "darkroom_engine_images_canceled",
            "Images canceled before they were finished.",
            labels=["model"],
        )

    def add(self, model: str, engine: Engine) -> None:
        counters = engine.counters
        self.gpu_seconds.add_metric([model], engine.busy_seconds)
        self.ticks.add_metric([model], counters.ticks)
        self.rows.add_metric([model, "live"], counters.live_rows)
        self.rows.add_metric([model, "padding"], counters.padded_rows)
        self.shape.add_metric([model], engine.model.batch_size)
        for queue_class in QUEUE_CLASSES:
            steps = counters.steps_by_queue_class.get(queue_class, 0)
            self.steps.add_metric([model, queue_class], steps)
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
