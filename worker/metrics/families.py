"""Metrics of duties, webhooks and models."""

import time
from collections.abc import Callable, Iterator, Sized
from contextlib import contextmanager

from prometheus_client import Counter, Gauge, Histogram

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
